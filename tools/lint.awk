# Size budgets of one C file that clang-format has laid out: a function begins on a line at column 0 that ends in "{"
# and ends at the next "}" at column 0. Prints "file:line: what: is, limit" and sets the exit status.
#   awk -v lines=400 -v length_max=60 -v depth_max=4 -v parameters_max=7 -f lint.awk FILE
function complain(line, what, is, limit) {
    printf "%s:%d: %s: %d, limit %d\n", FILENAME, line, what, is, limit
    bad = 1
}
{
    n_lines = FNR
    if (length($0) > 110) complain(FNR, "columns", length($0), 110)
}
!inside && /^[A-Za-z_].*\(/ && !/;$/ { signature = $0; start = FNR; collecting = 1 }
collecting && FNR > start { signature = signature $0 }
collecting && /;$/ { collecting = 0 }
collecting && /\{$/ {
    collecting = 0
    inside = 1
    depth = 0
    if (signature !~ /^(typedef|struct|enum|static const|const|extern)/) {
        arguments = signature
        sub(/^[^(]*\(/, "", arguments)
        n = gsub(/,/, ",", arguments) + 1
        if (n > parameters_max) complain(start, "parameters", n, parameters_max)
    }
    next
}
inside && /^\}/ {
    inside = 0
    if (FNR - start + 1 > length_max) complain(start, "function lines", FNR - start + 1, length_max)
    if (depth > depth_max) complain(deepest, "nesting", depth, depth_max)
    next
}
inside && /\{$/ {
    match($0, /^ */)
    level = RLENGTH / 4
    if (level > depth) { depth = level; deepest = FNR }
}
END {
    if (n_lines > lines) complain(n_lines, "file lines", n_lines, lines)
    exit bad
}
