/* Instance norm and PReLU: statistics, results and gradients. */
#ifndef NORMS_H
#define NORMS_H

#include "lanes.h"

/* Count, mean and sum of squared deviations. Values are summed as differences from one of them, and parts are combined by
 * Chan's formula, to avoid cancellation. */
typedef struct {
    double count, mean, m2;
} Moments;

typedef struct {
    double sum, square;  /* of differences from `pivot` */
    float pivot;
    int64_t count, pending;
    lanes sums, squares; /* of the last `pending` values, which are not in sum and square yet; LINE at most */
} Part;

static inline void flush_pending(Part *p) {
    p->sum += sum_lanes(p->sums);
    p->square += sum_lanes(p->squares);
    p->sums = p->squares = (lanes){0};
    p->pending = 0;
}

/* Add at most LINE values. */
INLINE void add_row(Part *p, const float *row, int64_t w) {
    int64_t x = 0;
    if (!p->count) {
        lanes total = {0};
        for (; x + LANES <= w; x += LANES) total += *(const lanes *)(row + x);
        p->pivot = x ? sum_lanes(total) / x : row[0];
    }
    if (p->pending + w > LINE) flush_pending(p);
    lanes sums = p->sums, squares = p->squares;
    for (x = 0; x + LANES <= w; x += LANES) {
        const lanes difference = *(const lanes *)(row + x) - p->pivot;
        sums += difference;
        squares += difference * difference;
    }
    p->sums = sums;
    p->squares = squares;
    for (; x < w; x++) {
        const float difference = row[x] - p->pivot;
        p->sum += difference;
        p->square += difference * difference;
    }
    p->count += w;
    p->pending += w;
}

INLINE void add_values(Part *p, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i += LINE) add_row(p, values + i, count - i < LINE ? count - i : LINE);
}

static inline void add_moments(Moments *m, const Moments *other) {
    if (!other->count) return;
    const double delta = other->mean - m->mean, total = m->count + other->count;
    m->mean += delta * other->count / total;
    m->m2 += other->m2 + delta * delta * m->count * other->count / total;
    m->count = total;
}

static inline void add_part(Moments *m, Part *p) {
    flush_pending(p);
    const double count = p->count;
    const Moments of_part = {count, p->pivot + p->sum / count, p->square - p->sum * p->sum / count};
    add_moments(m, &of_part);
}

/* Instance norm of one channel of one case, and the PReLU after it: max(z, 0) + slope * min(z, 0) of
 * z = (x - mean) * rstd * gain + shift. */
typedef struct {
    float mean, rstd, gain, shift, slope;
} Norm;

static Norm make_norm(const Moments *m, float eps, float gain, float shift, float slope) {
    return (Norm){(float)m->mean, (float)(1 / sqrt(m->m2 / m->count + eps)), gain, shift, slope};
}

INLINE void apply(const Norm *f, const float *x, float *y, int64_t count) {
    const float scale = f->rstd * f->gain, mean = f->mean, shift = f->shift, slope = f->slope;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float z = (x[i] - mean) * scale + shift;
        y[i] = z > 0 ? z : slope * z;
    }
}

/* x and y may be the same tensor. */
static void apply_stored(const Norm *f, const stored *x, stored *y, int64_t count) {
    float line[LINE];
    for (int64_t i = 0, length; i < count; i += length) {
        length = count - i < LINE ? count - i : LINE;
        to_floats(x + i, line, length);
        apply(f, line, line, length);
        from_floats(line, y + i, length);
    }
}

#ifndef BFLOAT16
/* Sums over a channel that its gradients are computed from: of the gradient g of the norm's output, of g times the normalised
 * values, and of the gradient of the slope. */
typedef struct {
    double gradient, projected, slope;
} Sums;

static void add_gradient(Sums *s, const Norm *f, const float *x, const float *g, int64_t count) {
    const float rstd = f->rstd, mean = f->mean, gain = f->gain, shift = f->shift, slope = f->slope;
    float gradient = 0, projected = 0, of_slope = 0;
#pragma omp simd reduction(+ : gradient, projected, of_slope)
    for (int64_t i = 0; i < count; i++) {
        float z = (x[i] - mean) * rstd, u = z * gain + shift;
        float inner = u > 0 ? g[i] : slope * g[i];
        gradient += inner;
        projected += inner * z;
        of_slope += u > 0 ? 0 : u * g[i];
    }
    s->gradient += gradient;
    s->projected += projected;
    s->slope += of_slope;
}

static void input_gradient(const Norm *f, const Sums *s, double voxels, const float *x, const float *g, float *gx, int64_t count) {
    const float rstd = f->rstd, mean = f->mean, gain = f->gain, shift = f->shift, slope = f->slope;
    const float scale = rstd * gain, mean_g = s->gradient / voxels, mean_p = s->projected / voxels;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float z = (x[i] - mean) * rstd, u = z * gain + shift;
        float inner = u > 0 ? g[i] : slope * g[i];
        gx[i] = scale * (inner - mean_g - z * mean_p);
    }
}

#endif /* BFLOAT16 */

#endif
