/* Losses on the routers' distributions inside a pass. Each layer's terms stand in the layer's block of the
 * tape, behind its logits, so that a recomputed block has their gradients too; their values are written once,
 * in the forward. */
#include "alloc.h"
#include "decoder.h"

bool router_loss_open(RouterLossReals *r, const RouterLoss *loss, const Model *model, int64_t n_rows,
                      Error *error) {
    *r = (RouterLossReals){0};
    if (!loss) return true;
    const ModelConfig *config = &model->config;
    const DType real = model->compute == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    const int64_t n = config->n_moe_layers * n_rows, n_logits = n * config->n_experts;
    bool ok = true;
    if (loss->kl_weights) {
        r->kl_weights = decoder_reals(real, loss->kl_weights, n_rows, &r->owned[0]);
        if (model->device->computes) r->frozen = decoder_reals(real, loss->frozen, n_logits, &r->owned[1]);
        r->kl = mem_zeroed((size_t)n, dtype_bytes(real));
        ok = r->kl_weights && (r->frozen || !model->device->computes) && r->kl;
    }
    if (loss->anchor_weights) {
        r->anchor_weights = decoder_reals(real, loss->anchor_weights, n_rows, &r->owned[2]);
        r->aims = decoder_reals(real, loss->aims, config->n_moe_layers * config->n_experts, &r->owned[3]);
        r->distance = mem_zeroed((size_t)n, dtype_bytes(real));
        ok = ok && r->anchor_weights && r->aims && r->distance;
    }
    return ok || error_out_of_memory(error, "a loss on routers", (size_t)n_logits * dtype_bytes(real));
}

void router_loss_close(RouterLossReals *r) {
    for (int i = 0; i < 4; i++) mem_free(r->owned[i]);
    mem_free(r->kl);
    mem_free(r->distance);
    *r = (RouterLossReals){0};
}

void router_loss_upload(Decoder *d, Context *c, const RouterLossReals *r, int64_t n) {
    const int64_t l = d->model->config.n_moe_layers, e = d->model->config.n_experts;
    RouterLossTensors *t = &d->router_loss_tensors;
    if (r->kl_weights) {
        t->kl_weights = tape_upload(c, c->real, n, r->kl_weights);
        t->frozen = tensor_as_cube(tape_upload(c, c->real, l * n * e, r->frozen), l, n, e);
        t->kl = tape_matrix(c, c->real, l, n);
    }
    if (r->anchor_weights) {
        t->anchor_weights = tape_upload(c, c->real, n, r->anchor_weights);
        t->aims = tensor_as_matrix(tape_upload(c, c->real, l * e, r->aims), l, e);
        t->distance = tape_matrix(c, c->real, l, n);
        c->device->zero(c->queue, t->distance);
    }
}

void router_loss_add(Context *c, const LayerRun *run) {
    const Decoder *d = run->decoder;
    const RouterLossTensors *t = &d->router_loss_tensors;
    const int64_t l = run->moe_layer;
    if (!d->router_loss) return;
    if (tensor_present(t->kl)) {
        Var *kl = tape_leaf(c, tensor_entry(t->kl, l), false);
        kl->g = t->kl_weights;
        nn_router_kl(c, kl, run->logits, tensor_entry(t->frozen, l), d->router_loss->temperature);
    }
    if (tensor_present(t->distance) && d->router_loss->anchored[l]) {
        Var *distance = tape_leaf(c, tensor_entry(t->distance, l), false);
        distance->g = t->anchor_weights;
        nn_router_anchor(c, distance, run->logits, tensor_entry(t->aims, l));
    }
}

void router_loss_fetch(Decoder *d, Context *c, const RouterLossReals *r) {
    const RouterLossTensors *t = &d->router_loss_tensors;
    if (!c->device->computes) return;
    if (r->kl) c->device->copy_out(c->queue, r->kl, t->kl);
    if (r->distance) c->device->copy_out(c->queue, r->distance, t->distance);
    if (d->hooks->router_loss)
        d->failed = !d->hooks->router_loss(d->hooks->context, &d->site, t->kl, t->distance);
}
