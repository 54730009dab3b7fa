#include "norms.h"
#include "padded.h"

#define DILATIONS 3
#define TAPS 27

/* The vector at some place of a row, and those k values before and after it. */
typedef struct {
    lanes before, here, after;
} Neighbours;

INLINE Neighbours neighbours(const int k, const float *at) {
#ifdef SHIFTED /* two shuffles cost less than loads that cross a cache line */
    const lanes left = *(const lanes *)(at - LANES), here = *(const lanes *)at, right = *(const lanes *)(at + LANES);
    switch (k) {
    case 1: return (Neighbours){SHIFTED(left, here, 15), here, SHIFTED(here, right, 1)};
    case 2: return (Neighbours){SHIFTED(left, here, 14), here, SHIFTED(here, right, 2)};
    default: return (Neighbours){SHIFTED(left, here, 13), here, SHIFTED(here, right, 3)};
    }
#else
    return (Neighbours){*(const lanes *)(at - k), *(const lanes *)at, *(const lanes *)(at + k)};
#endif
}

/* Rows, k apart, that are convolved together because their kernels overlap. */
#ifdef __AVX512F__
#define TOGETHER 4
#define ACROSS 2 /* vectors of a row that are computed together, while the weights are in registers */
#else
#define TOGETHER 2
#define ACROSS 1
#endif

/* lines (rows, across vectors) = bias + 3x3x3 cross-correlation. above: in each of the three planes the row before the first
 * one; rows lie `apart` values apart. */
INLINE void convolve_tile(const int rows, const int across, const int k, const float *const *above, int64_t apart,
                          const float *weight, float bias, float *lines, int64_t line) {
    lanes sums[TOGETHER][ACROSS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < across; v++) sums[r][v] = (lanes){0} + bias;
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) {
        lanes w[9];
#pragma GCC unroll 9
        for (int j = 0; j < 9; j++) w[j] = (lanes){0} + weight[9 * i + j];
#pragma GCC unroll 6
        for (int y = 0; y < rows + 2; y++)
#pragma GCC unroll 2
            for (int v = 0; v < across; v++) {
                const Neighbours t = neighbours(k, above[i] + y * apart + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    if (y < r || y > r + 2) continue;
                    sums[r][v] += t.before * w[3 * (y - r)];
                    sums[r][v] += t.here * w[3 * (y - r) + 1];
                    sums[r][v] += t.after * w[3 * (y - r) + 2];
                }
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < across; v++) *(lanes *)(lines + r * line + v * LANES) = sums[r][v];
}

/* lines (rows, rounded) = bias + 3x3x3 cross-correlation with dilation k at row r of plane z and the rows k, 2k, ... after. */
INLINE void convolve(const int rows, const int k, float *volume, const Padded *p, int64_t z, int64_t r, const float *weight,
                     float bias, float *lines) {
    const float *above[3];
    for (int i = 0; i < 3; i++) above[i] = row_at(volume, p, z + (i - 1) * k, r - k);
    int64_t x = 0;
    for (; x + ACROSS * LANES <= p->rounded; x += ACROSS * LANES) {
        convolve_tile(rows, ACROSS, k, above, k * p->row, weight, bias, lines + x, p->rounded);
        for (int i = 0; i < 3; i++) above[i] += ACROSS * LANES;
    }
    if (x < p->rounded) convolve_tile(rows, 1, k, above, k * p->row, weight, bias, lines + x, p->rounded);
}

/* Convolve row r of plane z, and TOGETHER - 1 more rows, k apart, where they exist; return the number of rows. */
static int convolve_rows(
    float *volume, const Padded *p, int64_t z, int64_t r, int64_t k, const float *weight, float bias, float *lines) {
    if (r + (TOGETHER - 1) * k < p->h) {
        if (k == 1) convolve(TOGETHER, 1, volume, p, z, r, weight, bias, lines);
        else if (k == 2) convolve(TOGETHER, 2, volume, p, z, r, weight, bias, lines);
        else convolve(TOGETHER, 3, volume, p, z, r, weight, bias, lines);
        return TOGETHER;
    }
    if (k == 1) convolve(1, 1, volume, p, z, r, weight, bias, lines);
    else if (k == 2) convolve(1, 2, volume, p, z, r, weight, bias, lines);
    else convolve(1, 3, volume, p, z, r, weight, bias, lines);
    return 1;
}

/* The row to continue with after `done` rows from r on: rows that are k apart come first, then those between them. p->h where
 * no row is left. */
static int64_t following_row(const Padded *p, int64_t r, int64_t k, int64_t done) {
    const int64_t below = r + done * k, between = r % k + 1;
    return below < p->h ? below : between < k && between < p->h ? between : p->h;
}

/* raw = plane z of the depthwise convolution with dilation k; its values are added to the moments. */
static void branch_plane(float *volume, const Padded *p, int64_t z, int64_t k, const float *weight, float bias, float *lines,
                         stored *raw, const int bypass, Moments *m) {
    Part part = {0};
    for (int64_t r = 0, rows; r < p->h; r = following_row(p, r, k, rows)) {
        rows = convolve_rows(volume, p, z, r, k, weight, bias, lines);
        for (int64_t i = 0; i < rows; i++) {
            const float *line = lines + i * p->rounded;
            add_values(&part, line, p->w);
            write_values(bypass, line, raw + (z * p->h + r + i * k) * p->w, p->w);
        }
    }
    add_part(m, &part);
}

/* Three depthwise convolutions with dilation 1, 2 and 3, instance norm and PReLU. weight: (3, C, 27); bias, gain, shift:
 * (3, C); slope: (3). y: (N, 3C, D, H, W). Where norms (N, 3C) are given, they are returned there and not applied to y. Memory
 * holds seven padded planes of a channel at a time, which fit into the second-level cache. */
int branches_forward(const Shape *s, const stored *x, const float *weight, const float *bias, const float *gain,
                     const float *shift, const float *slope, stored *y, Norm *norms) {
    const Padded p = padded_shape(s, 2 * HALO + 1);
    const int64_t voxels = s->d * s->h * s->w;
    const int bypass = s->n * DILATIONS * s->c * voxels * sizeof(stored) > LARGE;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *volume = zeros(p.total + TOGETHER * p.rounded), *lines = volume + p.total;
        failed = !volume;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->n * s->c; task++) {
            if (failed) continue;
            const int64_t n = task / s->c, c = task % s->c;
            Moments m[DILATIONS] = {{0, 0, 0}};
            for (int64_t z = -HALO; z < HALO; z++) pad_plane(x + task * voxels, volume, &p, z);
            for (int64_t z = 0; z < s->d; z++) {
                pad_plane(x + task * voxels, volume, &p, z + HALO);
                for (int64_t k = 0; k < DILATIONS; k++) {
                    const int64_t channel = k * s->c + c;
                    stored *raw = y + (n * DILATIONS * s->c + channel) * voxels;
                    branch_plane(volume, &p, z, k + 1, weight + channel * TAPS, bias[channel], lines, raw, bypass, m + k);
                }
            }
            for (int64_t k = 0; k < DILATIONS; k++) {
                const int64_t channel = k * s->c + c, place = n * DILATIONS * s->c + channel;
                const Norm f = make_norm(m + k, s->eps, gain[channel], shift[channel], slope[k]);
                if (norms) norms[place] = f;
                else apply_stored(&f, y + place * voxels, y + place * voxels, voxels);
            }
        }
        wait_for_writes();
        free(volume);
    }
    return failed;
}

#ifndef BFLOAT16
/* sums[tap] += sum over one plane of gradient * x shifted by the tap. */
INLINE void add_weight_gradient(const int k, double *sums, float *volume, float *gradient, const Padded *p, int64_t z) {
    lanes total[TAPS] = {{0}};
    for (int64_t r = 0; r < p->h; r++) {
        const float *g = row_at(gradient, p, z, r), *centre = row_at(volume, p, z, r);
        for (int64_t x = 0; x < p->rounded; x += LANES) {
            const lanes here = *(const lanes *)(g + x);
#pragma GCC unroll 9
            for (int i = 0; i < 9; i++) {
                const Neighbours t = neighbours(k, centre + (i / 3 - 1) * k * p->plane + (i % 3 - 1) * k * p->row + x);
                total[3 * i] += here * t.before;
                total[3 * i + 1] += here * t.here;
                total[3 * i + 2] += here * t.after;
            }
        }
    }
    for (int i = 0; i < TAPS; i++) sums[i] += sum_lanes(total[i]);
}

/* Gradients of branches_forward. gy: gradient of y, (N, 3C, D, H, W); gx: like x; gweight: (N, 3, C, 27); ggain, gshift,
 * gslope: (N, 3, C). The caller sums over N, and the last over C. The norm removes constants, so the gradient of the bias is
 * 0. */
int branches_backward(const Shape *s, const float *x, const float *weight, const float *bias, const float *gain,
                      const float *shift, const float *slope, const float *gy, float *gx, float *gweight, float *ggain,
                      float *gshift, float *gslope) {
    const Padded p = whole_volume(s);
    const int64_t voxels = s->d * s->h * s->w, area = s->h * s->w;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *volume = zeros(2 * p.total + TOGETHER * p.rounded + voxels), *gradient = volume + p.total;
        float *lines = gradient + p.total, *raw = lines + TOGETHER * p.rounded;
        failed = !volume;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->n * s->c; task++) {
            if (failed) continue;
            const int64_t n = task / s->c, c = task % s->c;
            float *to = gx + task * voxels;
            pad(x + task * voxels, volume, &p);
            for (int64_t k = 1; k <= DILATIONS; k++) {
                const int64_t channel = (k - 1) * s->c + c, place = n * DILATIONS * s->c + channel;
                const float *w = weight + channel * TAPS, *g = gy + place * voxels;
                Moments m = {0, 0, 0};
                for (int64_t z = 0; z < s->d; z++) branch_plane(volume, &p, z, k, w, bias[channel], lines, raw, 0, &m);
                const Norm f = make_norm(&m, s->eps, gain[channel], shift[channel], slope[k - 1]);
                Sums sums = {0, 0, 0};
                for (int64_t z = 0; z < s->d; z++) add_gradient(&sums, &f, raw + z * area, g + z * area, area);
                ggain[place] = sums.projected;
                gshift[place] = sums.gradient;
                gslope[place] = sums.slope;
                for (int64_t r = 0; r < s->d * s->h; r++)
                    input_gradient(&f, &sums, voxels, raw + r * s->w, g + r * s->w, row_at(gradient, &p, r / s->h, r % s->h), s->w);
                double of_weight[TAPS] = {0};
                float flipped[TAPS];
                for (int i = 0; i < TAPS; i++) flipped[i] = w[TAPS - 1 - i];
                for (int64_t z = 0; z < s->d; z++) {
                    if (k == 1) add_weight_gradient(1, of_weight, volume, gradient, &p, z);
                    else if (k == 2) add_weight_gradient(2, of_weight, volume, gradient, &p, z);
                    else add_weight_gradient(3, of_weight, volume, gradient, &p, z);
                    for (int64_t r = 0, rows; r < s->h; r = following_row(&p, r, k, rows)) {
                        rows = convolve_rows(gradient, &p, z, r, k, flipped, 0, lines);
                        for (int64_t i = 0; i < rows; i++) {
                            float *row = to + (z * s->h + r + i * k) * s->w;
                            const float *line = lines + i * p.rounded;
                            if (k == 1) memcpy(row, line, s->w * sizeof(float));
                            else
                                for (int64_t j = 0; j < s->w; j++) row[j] += line[j];
                        }
                    }
                }
                for (int i = 0; i < TAPS; i++) gweight[place * TAPS + i] = of_weight[i];
            }
        }
        free(volume);
    }
    return failed;
}
#endif
