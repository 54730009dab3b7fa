/* Float32 kernels for CPUs, compiled on the user's machine and called through ctypes (cpu.py).
 *
 * Tensors are contiguous (N, C, D, H, W). A task is one channel of one case: it is read into a zero-padded copy that stays
 * in cache while everything that needs it is computed. Threads call the same function with the same arguments and take
 * tasks from `next` until none is left. Every function returns 0, or 1 where memory ran out.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define HALO 3 /* the largest dilation */
#define DILATIONS 3
#define TAPS 27

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    int64_t n, c, d, h, w;
    float eps;
} Shape;

typedef struct {
    int64_t d, h, w, rounded, row, plane, total;
} Padded;

static Padded padded_shape(const Shape *s) {
    Padded p = {s->d, s->h, s->w, (s->w + LANES - 1) / LANES * LANES, 0, 0, 0};
    p.row = p.rounded + 2 * HALO;
    p.plane = p.row * (s->h + 2 * HALO);
    p.total = p.plane * (s->d + 2 * HALO) + LANES;
    return p;
}

static inline float *row_at(float *volume, const Padded *p, int64_t z, int64_t y) {
    return volume + (z + HALO) * p->plane + (y + HALO) * p->row + HALO;
}

static void pad(const float *x, float *volume, const Padded *p) {
    for (int64_t z = 0; z < p->d; z++)
        for (int64_t y = 0; y < p->h; y++, x += p->w) memcpy(row_at(volume, p, z, y), x, p->w * sizeof(float));
}

static inline float sum_lanes(lanes v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

/* out[0..rounded) = start + 3x3x3 cross-correlation around `centre`; start is a row or, where NULL, the constant bias. */
static void convolve_row(
    const float *centre, const Padded *p, int64_t k, const float *weight, float bias, const float *start, float *out) {
    const float *rows[9];
    for (int i = 0; i < 9; i++) rows[i] = centre + (i / 3 - 1) * k * p->plane + (i % 3 - 1) * k * p->row;
    for (int64_t x = 0; x < p->rounded; x += LANES) {
        lanes sum = start ? *(const lanes *)(start + x) : (lanes){0} + bias;
        for (int i = 0; i < 9; i++) {
            sum += *(const lanes *)(rows[i] + x - k) * weight[3 * i];
            sum += *(const lanes *)(rows[i] + x) * weight[3 * i + 1];
            sum += *(const lanes *)(rows[i] + x + k) * weight[3 * i + 2];
        }
        *(lanes *)(out + x) = sum;
    }
}

/* Mean and sum of squared deviations, a row at a time (Chan's formula), so that no large sums cancel. */
typedef struct {
    double count, mean, m2;
} Moments;

static void add_row(Moments *m, const float *row, int64_t w) {
    lanes sums = {0}, squares = {0};
    int64_t x = 0;
    float sum = 0, square = 0;
    for (; x + LANES <= w; x += LANES) sums += *(const lanes *)(row + x);
    for (int64_t i = x; i < w; i++) sum += row[i];
    float mean = (sum + sum_lanes(sums)) / w;
    for (int64_t i = 0; i + LANES <= w; i += LANES) {
        lanes difference = *(const lanes *)(row + i) - mean;
        squares += difference * difference;
    }
    for (int64_t i = x; i < w; i++) square += (row[i] - mean) * (row[i] - mean);
    double delta = mean - m->mean, total = m->count + w;
    m->mean += delta * w / total;
    m->m2 += square + sum_lanes(squares) + delta * delta * m->count * w / total;
    m->count = total;
}

/* act(z) = max(z, 0) + slope * min(z, 0) of z = scale * x + offset */
typedef struct {
    float mean, rstd, gain, shift, slope;
} Norm;

static Norm make_norm(const Moments *m, float eps, float gain, float shift, float slope) {
    return (Norm){(float)m->mean, (float)(1 / sqrt(m->m2 / m->count + eps)), gain, shift, slope};
}

static void apply(const Norm *f, const float *x, float *y, int64_t count) {
    const float scale = f->rstd * f->gain, mean = f->mean, shift = f->shift, slope = f->slope;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float z = (x[i] - mean) * scale + shift;
        y[i] = z > 0 ? z : slope * z;
    }
}

/* Sums over a channel that its gradients need. g: gradient of the activation's output. */
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

/* weight: (3, C, 27), bias, gain, shift: (3, C), slope: (3). y: (N, 3C, D, H, W). */
int branches_forward(const Shape *s, const float *x, const float *weight, const float *bias, const float *gain,
                     const float *shift, const float *slope, float *y, int64_t *next) {
    const Padded p = padded_shape(s);
    const int64_t voxels = s->d * s->h * s->w;
    float *volume = calloc(p.total + p.rounded, sizeof(float)), *line = volume + p.total;
    if (!volume) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const int64_t n = task / s->c, c = task % s->c;
        pad(x + task * voxels, volume, &p);
        for (int64_t k = 0; k < DILATIONS; k++) {
            const int64_t channel = k * s->c + c;
            float *out = y + (n * DILATIONS * s->c + channel) * voxels;
            Moments m = {0, 0, 0};
            for (int64_t z = 0; z < s->d; z++)
                for (int64_t r = 0; r < s->h; r++) {
                    convolve_row(row_at(volume, &p, z, r), &p, k + 1, weight + channel * TAPS, bias[channel], NULL, line);
                    add_row(&m, line, s->w);
                    memcpy(out + (z * s->h + r) * s->w, line, s->w * sizeof(float));
                }
            const Norm f = make_norm(&m, s->eps, gain[channel], shift[channel], slope[k]);
            apply(&f, out, out, voxels);
        }
    }
    free(volume);
    return 0;
}

/* sums[tap] += gradient * x shifted by the tap, over one plane. */
static void add_weight_gradient(double *sums, float *volume, float *gradient, const Padded *p, int64_t k, int64_t z) {
    lanes total[TAPS] = {{0}};
    for (int64_t r = 0; r < p->h; r++) {
        const float *g = row_at(gradient, p, z, r), *centre = row_at(volume, p, z, r), *rows[9];
        for (int i = 0; i < 9; i++) rows[i] = centre + (i / 3 - 1) * k * p->plane + (i % 3 - 1) * k * p->row;
        for (int64_t x = 0; x < p->rounded; x += LANES) {
            const lanes here = *(const lanes *)(g + x);
            for (int i = 0; i < 9; i++) {
                total[3 * i] += here * *(const lanes *)(rows[i] + x - k);
                total[3 * i + 1] += here * *(const lanes *)(rows[i] + x);
                total[3 * i + 2] += here * *(const lanes *)(rows[i] + x + k);
            }
        }
    }
    for (int i = 0; i < TAPS; i++) sums[i] += sum_lanes(total[i]);
}

/* Gradients of branches_forward. gy: (N, 3C, D, H, W). gx like x; gweight (N, 3, C, 27); gbias, ggain, gshift, gslope
 * (N, 3, C): the caller sums over N, and the slope's over C. */
int branches_backward(const Shape *s, const float *x, const float *weight, const float *bias, const float *gain,
                      const float *shift, const float *slope, const float *gy, float *gx, float *gweight, float *gbias,
                      float *ggain, float *gshift, float *gslope, int64_t *next) {
    const Padded p = padded_shape(s);
    const int64_t voxels = s->d * s->h * s->w;
    float *volume = calloc(2 * p.total + 2 * p.rounded, sizeof(float)), *gradient = volume + p.total;
    float *line = gradient + p.total, *start = line + p.rounded;
    if (!volume) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const int64_t n = task / s->c, c = task % s->c;
        float *to = gx + task * voxels;
        pad(x + task * voxels, volume, &p);
        for (int64_t k = 0; k < DILATIONS; k++) {
            const int64_t channel = k * s->c + c, place = n * DILATIONS * s->c + channel;
            const float *w = weight + channel * TAPS, *g = gy + place * voxels;
            Moments m = {0, 0, 0};
            for (int64_t z = 0; z < s->d; z++)
                for (int64_t r = 0; r < s->h; r++) {
                    convolve_row(row_at(volume, &p, z, r), &p, k + 1, w, bias[channel], NULL, line);
                    add_row(&m, line, s->w);
                    memcpy(row_at(gradient, &p, z, r), line, s->w * sizeof(float));
                }
            const Norm f = make_norm(&m, s->eps, gain[channel], shift[channel], slope[k]);
            Sums sums = {0, 0, 0};
            for (int64_t z = 0; z < s->d; z++)
                for (int64_t r = 0; r < s->h; r++)
                    add_gradient(&sums, &f, row_at(gradient, &p, z, r), g + (z * s->h + r) * s->w, s->w);
            ggain[place] = sums.projected;
            gshift[place] = sums.gradient;
            gslope[place] = sums.slope;
            double of_bias = 0, of_weight[TAPS] = {0};
            for (int64_t z = 0; z < s->d; z++)
                for (int64_t r = 0; r < s->h; r++) {
                    float *row = row_at(gradient, &p, z, r);
                    input_gradient(&f, &sums, voxels, row, g + (z * s->h + r) * s->w, row, s->w);
                    float row_sum = 0;
                    for (int64_t i = 0; i < s->w; i++) row_sum += row[i];
                    of_bias += row_sum;
                }
            gbias[place] = of_bias;
            float flipped[TAPS];
            for (int i = 0; i < TAPS; i++) flipped[i] = w[TAPS - 1 - i];
            for (int64_t z = 0; z < s->d; z++) {
                add_weight_gradient(of_weight, volume, gradient, &p, k + 1, z);
                for (int64_t r = 0; r < s->h; r++) {
                    float *row = to + (z * s->h + r) * s->w;
                    if (k) memcpy(start, row, s->w * sizeof(float));
                    convolve_row(row_at(gradient, &p, z, r), &p, k + 1, flipped, 0, k ? start : NULL, line);
                    memcpy(row, line, s->w * sizeof(float));
                }
            }
            for (int i = 0; i < TAPS; i++) gweight[place * TAPS + i] = of_weight[i];
        }
    }
    free(volume);
    return 0;
}

/* Instance norm and PReLU of (N, C, voxels); gain and shift (C), slope (1). */
int norm_act_forward(const Shape *s, const float *x, const float *gain, const float *shift, const float *slope, float *y,
                     int64_t *next) {
    const int64_t voxels = s->d * s->h * s->w, row = s->h * s->w;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const float *from = x + task * voxels;
        Moments m = {0, 0, 0};
        for (int64_t z = 0; z < s->d; z++) add_row(&m, from + z * row, row);
        const Norm f = make_norm(&m, s->eps, gain[task % s->c], shift[task % s->c], slope[0]);
        apply(&f, from, y + task * voxels, voxels);
    }
    return 0;
}

/* Gradients of norm_act_forward. gx like x; ggain, gshift, gslope (N, C). */
int norm_act_backward(const Shape *s, const float *x, const float *gain, const float *shift, const float *slope,
                      const float *gy, float *gx, float *ggain, float *gshift, float *gslope, int64_t *next) {
    const int64_t voxels = s->d * s->h * s->w, row = s->h * s->w;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const float *from = x + task * voxels, *g = gy + task * voxels;
        Moments m = {0, 0, 0};
        for (int64_t z = 0; z < s->d; z++) add_row(&m, from + z * row, row);
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
