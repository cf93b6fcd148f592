/* Running one op case in a test: from one description of its arguments (Problem), buffers of the dtypes
 * that a table wants, the call, and two comparators: same bits, or within a bound that follows from dtype
 * and reduction length.
 *
 * Outputs start as NaN, so an element that is not written shows; guard bytes stand around every buffer;
 * inputs must not change. The comparators return why they refuse, so that a planted fault can prove that
 * they do. */
#ifndef GATETAPE_TESTS_OP_RUN_H
#define GATETAPE_TESTS_OP_RUN_H
#include "kernels/cpu/cpu.h"
#include "kernels/device.h"
#include "kernels/random.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ARGS = 16, GUARD_BYTES = 64, GUARD = 0xa5, NONE = -1 };

typedef enum { IN, OUT, SUM, SCRATCH } Role;                  /* SUM: begins with values, is added to */
typedef enum { ACT, REAL, WEIGHT, FIXED_F32, I32, I64 } Kind; /* FIXED_F32: f32 in the table f64 too */

typedef struct {
    Role role;
    Kind kind;
    bool by_row, absent; /* by_row: entry t belongs to token t */
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS];
    double low, high; /* range of the random values */
    double avoid;     /* > 0: values keep away from +-avoid, where the op has a kink */
    bool filled;      /* the builder has set the values */
    double *values;   /* owned; integers too */
} Arg;

typedef struct {
    int64_t rows, width;
    int variant; /* which optional arguments, which rule */
    Arg arg[MOST_ARGS];
    int n_args;
    double reduction;   /* terms of the longest sum */
    double n_stores;    /* times that one element is rounded and stored */
    double scale;       /* least magnitude that bounds refer to: of the terms, where sums of few may cancel */
    bool rounds_inside; /* a real result of operands that are rounded to act */
    int64_t id;
    int64_t n_drawn;
} Problem;

typedef struct {
    const char *op;
    void (*build)(Problem *p);
    void (*call)(const Ops *ops, Queue *q, const Tensor *t, const Problem *p);
    int n_variants;
    bool rowwise; /* an output row depends on the same row of the by_row arguments alone */
} Case;

typedef struct {
    const char *isa;
    DType act, weight;
    int threads;
} Setting;

typedef struct {
    Tensor t[MOST_ARGS];              /* on the host */
    unsigned char *memory[MOST_ARGS]; /* with the guards */
    Tensor on_device[MOST_ARGS];      /* what the op is given: t itself on the CPU */
    Queue *queue;
    const Device *device;
} Run;

/* ---- building a problem ---- */
static inline double problem_draw(Problem *p) {
    return random_uniform(20240607, RANDOM_TEST, p->id, p->n_drawn++);
}

static inline int64_t problem_index(Problem *p, int64_t n) { return (int64_t)(problem_draw(p) * (double)n); }

static inline int64_t arg_count(const Arg *a) {
    int64_t n = 1;
    for (int i = 0; i < a->n_dims; i++) n *= a->shape[i];
    return n;
}

/* One more argument; dimensions NONE are left out. */
static inline Arg *whole_arg(Problem *p, Role role, Kind kind, int64_t a, int64_t b, int64_t c) {
    check(p->n_args < MOST_ARGS, "%d arguments", p->n_args);
    Arg *x = &p->arg[p->n_args++];
    *x = (Arg){.role = role, .kind = kind, .n_dims = b == NONE ? 1 : c == NONE ? 2 : 3, .shape = {a, b, c}};
    x->low = -1, x->high = 1;
    x->values = calloc((size_t)arg_count(x) + 1, sizeof *x->values);
    check(x->values, "out of memory");
    return x;
}

static inline Arg *row_arg(Problem *p, Role role, Kind kind, int64_t b, int64_t c) {
    Arg *x = whole_arg(p, role, kind, p->rows, b, c);
    x->by_row = true;
    return x;
}

/* An optional argument that this variant leaves out when `absent`. */
static inline void leave_out(Arg *x, bool absent) { x->absent = absent; }

/* Integer argument with random values in [0, n). */
static inline Arg *random_ints(Problem *p, Arg *x, int64_t n) {
    for (int64_t i = 0; i < arg_count(x); i++) x->values[i] = (double)problem_index(p, n);
    return x;
}

static inline Problem problem_new(const Case *c, int64_t rows, int64_t width, int variant) {
    Problem p = {.rows = rows, .width = width, .variant = variant, .reduction = 1, .n_stores = 1};
    p.id = rows * 100003 + width * 101 + variant;
    for (const char *s = c->op; *s; s++) p.id = (p.id * 31 + *s) % 1000000007;
    c->build(&p);
    for (int i = 0; i < p.n_args; i++) {
        Arg *x = &p.arg[i];
        if (x->kind == I32 || x->kind == I64 || x->filled) continue;
        for (int64_t k = 0; k < arg_count(x); k++) {
            double v = x->low + (x->high - x->low) * problem_draw(&p);
            x->values[k] = x->avoid > 0 && fabs(fabs(v) - x->avoid) < 0.02 ? 0.5 * v : v;
        }
    }
    return p;
}

static inline void problem_free(Problem *p) {
    for (int i = 0; i < p->n_args; i++) free(p->arg[i].values);
}

/* ---- from a problem to buffers ---- */
static inline uint16_t f32_to_f16(float f) { /* nearest; for values of ordinary size */
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude < 0x38800000) return (uint16_t)sign; /* below 2^-14: zero will do */
    magnitude -= 112u << 23;
    return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

static inline double round_to(double x, DType dtype) {
    if (dtype == DTYPE_BF16) return (double)bf16_to_f32(f32_to_bf16((float)x));
    if (dtype == DTYPE_F16) return (double)f16_to_f32(f32_to_f16((float)x));
    return (double)(float)x;
}

static inline DType setting_dtype(const Setting *s, Kind kind) {
    bool exact = !strcmp(s->isa, "f64");
    switch (kind) {
    case ACT: return exact ? DTYPE_F64 : s->act;
    case REAL: return exact ? DTYPE_F64 : DTYPE_F32;
    case WEIGHT: return exact ? DTYPE_F64 : s->weight;
    case FIXED_F32: return DTYPE_F32;
    case I32: return DTYPE_I32;
    default: return DTYPE_I64;
    }
}

/* The value that element k has in every table: rounded to the narrowest dtype that stores it. */
static inline double arg_value(const Arg *x, int64_t k, const Setting *s) {
    DType narrow = x->kind == ACT ? s->act : x->kind == WEIGHT ? s->weight : DTYPE_F32;
    return x->kind == I32 || x->kind == I64 ? x->values[k] : round_to(x->values[k], narrow);
}

static inline void element_set(Tensor t, int64_t k, double v) {
    switch (t.dtype) {
    case DTYPE_F32: ((float *)t.data)[k] = (float)v; break;
    case DTYPE_F64: ((double *)t.data)[k] = v; break;
    case DTYPE_BF16: ((uint16_t *)t.data)[k] = f32_to_bf16((float)v); break;
    case DTYPE_F16: ((uint16_t *)t.data)[k] = f32_to_f16((float)v); break;
    case DTYPE_I32: ((int32_t *)t.data)[k] = (int32_t)v; break;
    default: ((int64_t *)t.data)[k] = (int64_t)v; break;
    }
}

static inline double element_get(Tensor t, int64_t k) {
    switch (t.dtype) {
    case DTYPE_F32: return (double)((const float *)t.data)[k];
    case DTYPE_F64: return ((const double *)t.data)[k];
    case DTYPE_BF16: return (double)bf16_to_f32(((const uint16_t *)t.data)[k]);
    case DTYPE_F16: return (double)f16_to_f32(((const uint16_t *)t.data)[k]);
    case DTYPE_I32: return (double)((const int32_t *)t.data)[k];
    default: return (double)((const int64_t *)t.data)[k];
    }
}

static inline bool is_float(Tensor t) { return t.dtype != DTYPE_I32 && t.dtype != DTYPE_I64; }

/* The tensor of an argument, filled as it is before the call. */
static inline void arg_fill(Tensor t, const Arg *x, const Setting *s) {
    bool poisoned = x->role == OUT || x->role == SCRATCH;
    for (int64_t k = 0; k < tensor_count(t); k++)
        element_set(t, k, !poisoned ? arg_value(x, k, s) : is_float(t) ? (double)NAN : -77777);
}

static inline bool is_on_host(const Device *device) { return strcmp(device->name, "cuda") != 0; }

/* A tensor's bytes to the device, or back. Nothing stands around them there: the emulator knows the bounds
 * of each allocation. */
static inline Tensor arg_send(const Run *r, Tensor t) {
    if (!t.data || is_on_host(r->device)) return t;
    Tensor sent = t;
    sent.data = r->device->alloc(tensor_bytes(t));
    check(sent.data, "out of device memory");
    r->device->copy_in(r->queue, sent, t.data);
    return sent;
}

static inline void run_fetch(const Run *r) {
    for (int i = 0; i < MOST_ARGS && !is_on_host(r->device); i++)
        if (r->t[i].data) r->device->copy_out(r->queue, r->t[i].data, r->on_device[i]);
    check(r->device->sync(r->queue), "%s", r->queue->failure);
}

/* Buffers for a setting, not yet called. Freed by run_free. */
static inline Run run_new(const Problem *p, const Setting *s) {
    Run r = {.device = strcmp(s->isa, "cuda") ? cpu_device_named(s->isa) : cuda_device(NULL)};
    check(r.device, "no table %s", s->isa);
    r.queue = r.device->queue_new();
    check(r.queue, "out of memory");
    for (int i = 0; i < p->n_args; i++) {
        const Arg *x = &p->arg[i];
        Tensor t = {.dtype = setting_dtype(s, x->kind), .n_dims = x->n_dims};
        memcpy(t.shape, x->shape, sizeof t.shape);
        size_t n_bytes = tensor_bytes(t);
        r.memory[i] = malloc(n_bytes + 2 * GUARD_BYTES);
        check(r.memory[i], "out of memory");
        memset(r.memory[i], GUARD, n_bytes + 2 * GUARD_BYTES);
        t.data = r.memory[i] + GUARD_BYTES;
        arg_fill(t, x, s);
        if (x->absent) t = (Tensor){0};
        r.t[i] = t;
        r.on_device[i] = arg_send(&r, t);
    }
    return r;
}

static inline void run_free(Run *r, const Problem *p) {
    for (int i = 0; i < p->n_args; i++) {
        if (r->on_device[i].data != r->t[i].data) r->device->free(r->on_device[i].data);
        free(r->memory[i]);
    }
    r->device->queue_free(r->queue);
}

static inline Run run_case(const Case *c, const Problem *p, const Setting *s) {
    Run r = run_new(p, s);
    omp_set_num_threads(s->threads);
    c->call(r.device->ops, r.queue, r.on_device, p);
    run_fetch(&r);
    return r;
}

/* ---- comparing; each returns whether all is well and writes what is not ---- */
typedef struct {
    char text[240];
} Finding;

/* Guards untouched, inputs unchanged, outputs written and finite. */
static inline bool run_is_clean(const Run *r, const Problem *p, const Setting *s, Finding *why) {
    for (int i = 0; i < p->n_args; i++) {
        const Arg *x = &p->arg[i];
        if (x->absent) continue;
        Tensor t = r->t[i];
        size_t n_bytes = tensor_bytes(t);
        for (size_t k = 0; k < GUARD_BYTES; k++)
            if (r->memory[i][k] != GUARD || r->memory[i][GUARD_BYTES + n_bytes + k] != GUARD) {
                snprintf(why->text, sizeof why->text, "argument %d: guard byte %zu overwritten", i, k);
                return false;
            }
        for (int64_t k = 0; k < tensor_count(t) && x->role != SCRATCH; k++) {
            double v = element_get(t, k), bad = is_float(t) ? !isfinite(v) : v == -77777;
            if (x->role == IN ? v != arg_value(x, k, s) : bad != 0) {
                snprintf(why->text, sizeof why->text, "argument %d: element %lld is %g", i, (long long)k, v);
                return false;
            }
        }
    }
    return true;
}

static inline bool is_result(const Arg *x) { return (x->role == OUT || x->role == SUM) && !x->absent; }

/* Same bits in all results. */
static inline bool runs_equal(const Run *a, const Run *b, const Problem *p, Finding *why) {
    for (int i = 0; i < p->n_args; i++) {
        if (!is_result(&p->arg[i]) || !memcmp(a->t[i].data, b->t[i].data, tensor_bytes(a->t[i]))) continue;
        int64_t k = 0;
        size_t size = dtype_bytes(a->t[i].dtype);
        while (
            !memcmp((char *)a->t[i].data + (size_t)k * size, (char *)b->t[i].data + (size_t)k * size, size))
            k++;
        snprintf(why->text, sizeof why->text, "argument %d: element %lld is %.9g and %.9g", i, (long long)k,
                 element_get(a->t[i], k), element_get(b->t[i], k));
        return false;
    }
    return true;
}

/* Results within a bound of the table f64: a few roundings of the dtype that stores, and the roundings of
 * f32 sums, which grow as the root of the number of terms; of the tensor's largest magnitude. Integers are
 * equal. */
static inline bool run_is_near(const Run *r, const Run *exact, const Problem *p, const Setting *s,
                               Finding *why) {
    for (int i = 0; i < p->n_args; i++) {
        if (!is_result(&p->arg[i])) continue;
        Tensor t = r->t[i];
        double largest = p->scale;
        for (int64_t k = 0; p->arg[i].role == SUM && k < tensor_count(t); k++)
            largest = fmax(largest, fabs(p->arg[i].values[k]));
        for (int64_t k = 0; k < tensor_count(t); k++)
            largest = fmax(largest, fabs(element_get(exact->t[i], k)));
        double sums = 0x1p-24 * (6 + 2 * sqrt(p->reduction));
        bool narrow = t.dtype == DTYPE_BF16 || (p->rounds_inside && s->act == DTYPE_BF16);
        double bound = (sums + (narrow ? 0x1p-8 * (1 + 0.5 * sqrt(p->n_stores)) : 0)) * largest;
        if (!is_float(t)) bound = 0;
        for (int64_t k = 0; k < tensor_count(t); k++) {
            double v = element_get(t, k), want = element_get(exact->t[i], k);
            if (fabs(v - want) <= bound) continue;
            snprintf(why->text, sizeof why->text,
                     "argument %d: element %lld is %.9g, in f64 %.9g, bound %.3g", i, (long long)k, v, want,
                     bound);
            return false;
        }
    }
    return true;
}

#endif
