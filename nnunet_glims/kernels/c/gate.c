#include "padded.h"

/* The 7x7x7 convolution of a spatial gate, from several maps to one, zero-padded.
 *
 * A task is a plane. The volumes come from pad_volumes, which writes padded_floats values for each map. */
#define KERNEL 7
#define ACROSS 4 /* vectors of a row that are computed together, with their sums in registers */

int64_t padded_floats(const Shape *s) { return whole_volume(s).total; }

/* volumes: (N, C, padded_floats), zero before. */
int pad_volumes(const Shape *s, const stored *x, float *volumes) {
    const Padded p = whole_volume(s);
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->c; task++)
        pad(x + task * s->d * s->h * s->w, volumes + task * p.total, &p);
    return 0;
}

/* sums += cross-correlation with the kernel of one map around `centre`, for `across` vectors of a row. */
INLINE void convolve_tile(const int across, const float *centre, const Padded *p, const float *weight, lanes *sums) {
    for (int z = 0; z < KERNEL; z++)
        for (int y = 0; y < KERNEL; y++) {
            const float *row = centre + (z - HALO) * p->plane + (y - HALO) * p->row - HALO;
            for (int x = 0; x < KERNEL; x++)
                for (int v = 0; v < across; v++)
                    sums[v] += weight[(z * KERNEL + y) * KERNEL + x] * *(const lanes *)(row + x + v * LANES);
        }
}

/* volumes: (N, C, padded_floats); weight: (C, 343); y: (N, D, H, W). */
int gate_convolution_forward(const Shape *s, float *volumes, const float *weight, stored *y) {
    const Padded p = whole_volume(s);
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->d; task++)
        for (int64_t r = 0; r < s->h; r++)
            for (int64_t x = 0, across; x < p.rounded; x += across * LANES) {
                const int64_t left = s->w - x;
                across = x + ACROSS * LANES <= p.rounded ? ACROSS : 1;
                lanes sums[ACROSS] = {{0}};
                for (int64_t c = 0; c < s->c; c++) {
                    float *volume = volumes + (task / s->d * s->c + c) * p.total;
                    const float *centre = row_at(volume, &p, task % s->d, r) + x, *kernel = weight + c * KERNEL * KERNEL * KERNEL;
                    if (across == ACROSS) convolve_tile(ACROSS, centre, &p, kernel, sums);
                    else convolve_tile(1, centre, &p, kernel, sums);
                }
                const float *values = (const float *)sums;
                from_floats(values, y + (task * s->h + r) * s->w + x, left < across * LANES ? left : across * LANES);
            }
    return 0;
}

#ifndef BFLOAT16
/* volumes: (N, C, padded_floats); gradients: of y, padded, (N, padded_floats); gweight: (N, D, C, 343), the sum of each tap
 * over one plane, which the caller sums over N and D. */
int gate_convolution_weight_gradient(const Shape *s, float *volumes, float *gradients, float *gweight) {
    const Padded p = whole_volume(s);
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->d; task++)
        for (int64_t i = 0; i < s->c * KERNEL * KERNEL; i++) {
            const int64_t c = i / (KERNEL * KERNEL), z = task % s->d + i / KERNEL % KERNEL - HALO, y = i % KERNEL - HALO;
            float *volume = volumes + (task / s->d * s->c + c) * p.total;
            lanes totals[KERNEL] = {{0}};
            for (int64_t r = 0; r < s->h; r++) {
                const float *g = row_at(gradients + task / s->d * p.total, &p, task % s->d, r);
                const float *row = row_at(volume, &p, z, r + y) - HALO;
                for (int64_t x = 0; x < p.rounded; x += LANES)
                    for (int t = 0; t < KERNEL; t++) totals[t] += *(const lanes *)(g + x) * *(const lanes *)(row + x + t);
            }
            for (int t = 0; t < KERNEL; t++) gweight[(task * s->c * KERNEL * KERNEL + i) * KERNEL + t] = sum_lanes(totals[t]);
        }
    return 0;
}
#endif
