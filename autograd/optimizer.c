/* One optimizer step over a flat vector. */
#include "optimizer.h"
#include "../kernels/check.h"
#include "../kernels/math.h"

const AdamwOptions adamw_usual = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};

/* x^n, the same on every machine. */
static double power(double x, int64_t n) {
    double y = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) y *= x;
    return y;
}

bool optimizer_norm(const Device *device, Queue *queue, const Optimizer *o, double *norm) {
    int64_t rows = tensor_count(o->norms);
    check(tensor_count(o->grad) == rows * OPTIMIZER_COLUMNS, "%lld elements, %lld rows",
          (long long)tensor_count(o->grad), (long long)rows);
    device->ops->row_norms(queue, o->norms, (Tensor){0}, tensor_as_matrix(o->grad, rows, OPTIMIZER_COLUMNS));
    device->copy_out(queue, o->host_norms, o->norms);
    if (!device->sync(queue)) return false;
    double sum = 0;
    for (int64_t i = 0; i < rows; i++) {
        double row = o->norms.dtype == DTYPE_F64 ? ((const double *)o->host_norms)[i]
                                                 : (double)((const float *)o->host_norms)[i];
        sum += row * row;
    }
    *norm = sqrt(sum);
    return true;
}

static void step_part(const Device *device, Queue *queue, const Optimizer *o, int64_t first, int64_t n,
                      AdamwRule rule) {
    device->ops->adamw(queue, tensor_slice(o->values, first, n), tensor_slice(o->means, first, n),
                       tensor_slice(o->squares, first, n), tensor_slice(o->grad, first, n), rule);
}

void optimizer_step(const Device *device, Queue *queue, Optimizer *o, const AdamwOptions *options,
                    double rate, double norm) {
    o->n_steps++;
    AdamwRule rule = {.rate = rate,
                      .beta1 = options->beta1,
                      .beta2 = options->beta2,
                      .eps = options->eps,
                      .decay = options->decay,
                      .correction1 = 1 - power(options->beta1, o->n_steps),
                      .correction2 = 1 - power(options->beta2, o->n_steps),
                      .grad_scale = 1};
    if (options->clip_norm > 0) rule.grad_scale = fmin(1, options->clip_norm / (norm + 1e-6));
    const int64_t n = tensor_count(o->values), n_head = o->n_head ? o->n_head : n;
    step_part(device, queue, o, 0, n_head, rule);
    if (n_head == n) return;
    rule.rate = o->tail_rate, rule.decay = 0;
    step_part(device, queue, o, n_head, n - n_head, rule);
}

double schedule_rate(const Schedule *s, int64_t step) {
    const double pi = 3.14159265358979323846;
    if (step < s->n_warmup) return s->peak * (double)(step + 1) / (double)s->n_warmup;
    double rest = (double)(s->n_steps - s->n_warmup), part = 0, sine, cosine;
    if (rest > 0) part = fmin(1, (double)(step - s->n_warmup) / rest);
    switch (s->kind) {
    case SCHEDULE_LINEAR: return s->peak * (1 - part);
    case SCHEDULE_COSINE: sincos_f64(pi * part, &sine, &cosine); return s->peak * (1 + cosine) / 2;
    case SCHEDULE_CONSTANT: break;
    }
    return s->peak;
}
