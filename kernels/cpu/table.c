/* The table of this instruction set. */
#include "cpu.h"

extern const Ops CPU_OP(ops);
#define X(op) .op = CPU_OP(op),
const Ops CPU_OP(ops) = {OPS(X)};
