#!/usr/bin/env bash
# Reports made of attacks on a page, opened in headless Chromium: nothing runs, nothing is asked for, texts come back
# as they went in, no message on the console, at the width of a phone and of a desk. Skipped aloud where there is no
# Chromium, Python or gnuplot.   test_browser.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
program=$1 source=$2
for needed in python3 gnuplot; do
    command -v "$needed" >/dev/null || { echo "skipped: $needed is not installed"; exit 0; }
done
PYTHONDONTWRITEBYTECODE=1 python3 "$source/tools/check_report.py" --payloads "$program" --folders 2
