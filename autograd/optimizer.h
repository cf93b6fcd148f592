/* AdamW over one flat vector of parameters: the length of the gradient, clipping, the schedule of the rate.
 * Memory is the caller's. The length is the same on every backend and for any number of threads: rows of
 * OPTIMIZER_COLUMNS elements on the device, their squares added in order on the host. */
#ifndef GATETAPE_OPTIMIZER_H
#define GATETAPE_OPTIMIZER_H
#include "../kernels/device.h"

enum { OPTIMIZER_COLUMNS = 1024 };

typedef struct {
    Tensor values, grad;   /* [N] real, N a multiple of OPTIMIZER_COLUMNS; gradients of padding stay 0 */
    Tensor means, squares; /* [N] real: running means of the gradient and of its square, 0 at first */
    Tensor norms;          /* [N / OPTIMIZER_COLUMNS] real */
    void *host_norms;      /* as many reals on the host */
    int64_t n_steps;       /* taken */
    int64_t n_head;        /* elements from there on have a rate of their own and no decay; 0: none do */
    double tail_rate;      /* theirs in the next step */
} Optimizer;

typedef struct {
    double beta1, beta2, eps, decay;
    double clip_norm; /* the gradient is scaled to this length where it is longer; 0: never */
} AdamwOptions;

extern const AdamwOptions adamw_usual; /* 0.9, 0.999, 1e-8, neither decay nor clipping, as torch has it */

/* L2 norm of the gradient. Waits. False when an op has failed; the queue says which. */
bool optimizer_norm(const Device *device, Queue *queue, const Optimizer *optimizer, double *norm);
/* One step at a rate. `norm` is optimizer_norm's; clipping divides by norm + 1e-6 as torch does. */
void optimizer_step(const Device *device, Queue *queue, Optimizer *optimizer, const AdamwOptions *options,
                    double rate, double norm);

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE } ScheduleKind;
typedef struct {
    ScheduleKind kind;
    double peak;
    int64_t n_warmup, n_steps; /* the rate rises over the first n_warmup of n_steps, then falls to 0 */
} Schedule;
/* The rate of step number `step`, from 0: peak (step + 1) / n_warmup while it rises; then with the part p =
 * (step - n_warmup) / (n_steps - n_warmup): peak, peak (1 - p), or peak (1 + cos(pi p)) / 2. */
double schedule_rate(const Schedule *schedule, int64_t step);

#endif
