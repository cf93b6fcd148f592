# One line for each kernel of an nvdisasm listing:
#   instructions, of them mma (HMMA), instructions of the main loop, of them mma, accesses of local memory, mangled name
# The main loop is the smallest one with the most mma. A loop is what lies between a branch back and its target; what
# the compiler moves out of a loop (divergence) branches back into it too, and holds fewer.

function finish_kernel(   i, from, n, best, length_of_best, mma_of_best) {
    if (kernel == "") return
    for (i = 1; i <= n_instructions; i++) {
        if (!(i in target) || !(target[i] in label) || label[target[i]] > i) continue
        from = label[target[i]]
        n = mma[i] - mma[from - 1]
        if (n > mma_of_best || (n == mma_of_best && n > 0 && i - from + 1 < length_of_best)) {
            mma_of_best = n
            length_of_best = i - from + 1
        }
    }
    print n_instructions, mma[n_instructions] + 0, length_of_best + 0, mma_of_best + 0, n_local, kernel
}

/^\.text\./ {
    finish_kernel()
    kernel = substr($1, 7)
    sub(/:$/, "", kernel)
    n_instructions = n_local = 0
    split("", label)
    split("", target)
    split("", mma)
    mma[0] = 0
}
/^\.L_x_[0-9]+:/ { label[substr($1, 1, length($1) - 1)] = n_instructions + 1 }
kernel != "" && $1 ~ /^\/\*[0-9a-f]+\*\/$/ && NF > 1 {
    operation = $2 ~ /^@/ ? $3 : $2
    n_instructions++
    mma[n_instructions] = mma[n_instructions - 1] + (operation ~ /^HMMA\./)
    n_local += operation ~ /^(LDL|STL)(\.|$)/
    if (operation ~ /^BRA/ && match($0, /\.L_x_[0-9]+/)) target[n_instructions] = substr($0, RSTART, RLENGTH)
}
END { finish_kernel() }
