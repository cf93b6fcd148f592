# Two runs of one training, of two devices: `awk -f compare_training.awk -v bound=B -v what=NAME ONE/FILE OTHER/FILE`, FILE
# either training.csv or updates.csv of a tune step, or the numbers of an adapter (od -An -v -tf4). Prints the largest
# difference as a share of the largest magnitude; exit status 1 where it exceeds the bound or nothing was compared.
BEGIN { FS = what == "adapter" ? " " : "," }
function compare(group, key, value, off) {
    if (file == 1) {
        one[group, key] = value
        if (value > most[group]) most[group] = value
        if (-value > most[group]) most[group] = -value
        return
    }
    off = one[group, key] - value
    if (off < 0) off = -off
    if (!((group, key) in one) || (off > 0 && off > worst * most[group])) worst = most[group] > 0 ? off / most[group] : 1
    n++
}
FNR == 1 { file++ }
what == "adapter" { for (i = 1; i <= NF; i++) compare("value", FNR " " i, $i + 0) }
what == "losses" && FNR > 1 { compare("loss", $1, $2 + 0); compare("norm", $1, $3 + 0) }
what == "updates" && FNR > 1 { compare("norm", $1 " " $2 " " $3, $6 + 0) }
END {
    printf "%s: %d numbers, largest difference %.1e of the largest, bound %.0e\n", what, n, worst, bound
    exit n == 0 || n < length(one) || worst > bound
}
