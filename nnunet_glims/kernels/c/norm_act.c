#include "norms.h"

/* Moments of a channel, one plane after the other. */
static Moments moments(const stored *x, int64_t planes, int64_t area) {
    Moments m = {0, 0, 0};
    float line[LINE];
    for (int64_t z = 0; z < planes; z++, x += area) {
        Part part = {0};
        for (int64_t i = 0, length; i < area; i += length) {
            length = area - i < LINE ? area - i : LINE;
            to_floats(x + i, line, length);
            add_row(&part, line, length);
        }
        add_part(&m, &part);
    }
    return m;
}

/* y = PReLU(instance norm(x)). x, y: (N, C, D, H, W); gain, shift: (C); slope: (1). */
int norm_act_forward(const Shape *s, const stored *x, const float *gain, const float *shift, const float *slope, stored *y) {
    const int64_t area = s->h * s->w, voxels = s->d * area;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->c; task++) {
        const Moments m = moments(x + task * voxels, s->d, area);
        const Norm f = make_norm(&m, s->eps, gain[task % s->c], shift[task % s->c], slope[0]);
        apply_stored(&f, x + task * voxels, y + task * voxels, voxels);
    }
    return 0;
}

/* Apply norms (N, C) with their PReLU to y (N, C, D, H, W) in place. */
int apply_forward(const Shape *s, stored *y, const Norm *norms) {
    const int64_t voxels = s->d * s->h * s->w;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->c; task++)
        apply_stored(norms + task, y + task * voxels, y + task * voxels, voxels);
    return 0;
}

/* y = PReLU(instance norm(x + norms(y))) in place. x, y: (N, C, D, H, W); norms: (N, C), applied with their PReLU;
 * slope: (1), of the last PReLU. */
int residual_forward(const Shape *s, const stored *x, stored *y, const Norm *norms, const float *slope) {
    const int64_t area = s->h * s->w, voxels = s->d * area;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->c; task++) {
        float line[LINE], other[LINE];
        const stored *from = x + task * voxels;
        stored *to = y + task * voxels;
        Moments m = {0, 0, 0};
        for (int64_t z = 0; z < s->d; z++) {
            Part part = {0};
            for (int64_t i = z * area, length; i < (z + 1) * area; i += length) {
                length = (z + 1) * area - i < LINE ? (z + 1) * area - i : LINE;
                to_floats(to + i, line, length);
                to_floats(from + i, other, length);
                apply(norms + task, line, line, length);
                for (int64_t j = 0; j < length; j++) line[j] += other[j];
                add_row(&part, line, length);
                from_floats(line, to + i, length);
            }
            add_part(&m, &part);
        }
        const Norm f = make_norm(&m, s->eps, 1, 0, slope[0]);
        apply_stored(&f, to, to, voxels);
    }
    return 0;
}

#ifndef BFLOAT16
/* Gradients of norm_act_forward. gy: gradient of y; gx: like x; ggain, gshift, gslope: (N, C), which the caller sums over N,
 * and the last over C. */
int norm_act_backward(const Shape *s, const float *x, const float *gain, const float *shift, const float *slope,
                      const float *gy, float *gx, float *ggain, float *gshift, float *gslope) {
    const int64_t voxels = s->d * s->h * s->w, row = s->h * s->w;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->c; task++) {
        const float *from = x + task * voxels, *g = gy + task * voxels;
        const Moments m = moments(from, s->d, row);
        const Norm f = make_norm(&m, s->eps, gain[task % s->c], shift[task % s->c], slope[0]);
        Sums sums = {0, 0, 0};
        for (int64_t z = 0; z < s->d; z++) add_gradient(&sums, &f, from + z * row, g + z * row, row);
        ggain[task] = sums.projected;
        gshift[task] = sums.gradient;
        gslope[task] = sums.slope;
        input_gradient(&f, &sums, voxels, from, g, gx + task * voxels, voxels);
    }
    return 0;
}
#endif
