/* ranks: what the processes of one run must have in common.
 *
 * Each rank reads the job, the inputs and the program itself, and before anything is computed all compare
 * hashes with rank 0: another binary on one node, a model folder that is not the same, an instruction set
 * with other bits end the run with one line that says who differs in what. */
#ifndef GATETAPE_RANKS_H
#define GATETAPE_RANKS_H
#include "../engine/comm.h"
#include "run_folder.h"

/* Collective. The same answer on every rank. ERROR_BAD_INPUT names the lowest rank that differs from rank
 * 0. */
bool ranks_check_alike(Comm *comm, const RunFacts *facts, Error *error);

/* Which GPU a rank takes: a text for CUDA_VISIBLE_DEVICES, in `to`. visible: that variable, NULL when it
 * is not set. Of a list each rank of a machine takes its own entry; a list of one is what a launcher gives
 * each rank. ERROR_UNAVAILABLE when the list is too short. */
bool ranks_choose_gpu(const char *visible, int local_rank, char to[64], Error *error);
/* Sets that variable for this process, before its first call of the device. */
bool ranks_set_gpu(const Comm *comm, Error *error);

#endif
