/* Float32 kernels for CPUs, compiled on the user's machine and called through ctypes (cpu.py).
 *
 * Tensors are contiguous (N, C, D, H, W). Work is shared out in tasks: for norms and depthwise convolutions one channel of
 * one case, which is read into a zero-padded copy that stays in cache while everything that needs it is computed. Threads
 * call the same function with the same arguments and take tasks from `next` until none is left, so that results do not
 * depend on their number. Every function returns 0, or 1 where memory ran out.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define HALO 3 /* the largest dilation, and half of the widest kernel */
#define DILATIONS 3
#define TAPS 27
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    int64_t n, c, d, h, w;
    float eps;
} Shape;

/* A volume with zeros around it. Rows begin LANES values after a multiple of LANES. */
typedef struct {
    int64_t d, h, w, rounded, row, plane, total;
} Padded;

static Padded padded_shape(const Shape *s) {
    Padded p = {s->d, s->h, s->w, (s->w + LANES - 1) / LANES * LANES, 0, 0, 0};
    p.row = p.rounded + 2 * LANES;
    p.plane = p.row * (s->h + 2 * HALO);
    p.total = p.plane * (s->d + 2 * HALO);
    return p;
}

static inline float *row_at(float *volume, const Padded *p, int64_t z, int64_t y) {
    return volume + (z + HALO) * p->plane + (y + HALO) * p->row + LANES;
}

static void pad(const float *x, float *volume, const Padded *p) {
    for (int64_t z = 0; z < p->d; z++)
        for (int64_t y = 0; y < p->h; y++, x += p->w) memcpy(row_at(volume, p, z, y), x, p->w * sizeof(float));
}

/* Zeros, at the start of a line of the cache; NULL where memory ran out. */
static float *zeros(int64_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    float *memory = aligned_alloc(64, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHIFTED(a, b, k) \
    __builtin_shufflevector(a, b, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7, k + 8, k + 9, k + 10, k + 11, k + 12, \
                            k + 13, k + 14, k + 15)
#endif
#endif

static inline float sum_lanes(lanes v) {
#ifdef SHIFTED
    v += SHIFTED(v, v, 8);
    v += SHIFTED(v, v, 4);
    v += SHIFTED(v, v, 2);
    return v[0] + v[1];
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
#endif
}

/* The values k before and k behind those at `at`. */
typedef struct {
    lanes before, here, after;
} Three;

INLINE Three three(const int k, const float *at) {
#ifdef SHIFTED /* two shuffles cost less than loads that straddle two lines of the cache */
    const lanes left = *(const lanes *)(at - LANES), here = *(const lanes *)at, right = *(const lanes *)(at + LANES);
    switch (k) {
    case 1: return (Three){SHIFTED(left, here, 15), here, SHIFTED(here, right, 1)};
    case 2: return (Three){SHIFTED(left, here, 14), here, SHIFTED(here, right, 2)};
    default: return (Three){SHIFTED(left, here, 13), here, SHIFTED(here, right, 3)};
    }
#else
    return (Three){*(const lanes *)(at - k), *(const lanes *)at, *(const lanes *)(at + k)};
#endif
}

/* Rows that are convolved together, k apart, because they read the same rows. */
#ifdef __AVX512F__
#define TOGETHER 4
#else
#define TOGETHER 2
#endif

/* lines (rows, rounded) = bias + 3x3x3 cross-correlation around `centre` and the rows k, 2k, ... below it. */
INLINE void convolve(
    const int rows, const int k, const float *centre, const Padded *p, const float *weight, float bias, float *lines) {
    for (int64_t x = 0; x < p->rounded; x += LANES) {
        lanes sums[TOGETHER];
        for (int r = 0; r < rows; r++) sums[r] = (lanes){0} + bias;
#pragma GCC unroll 3
        for (int z = 0; z < 3; z++)
#pragma GCC unroll 6
            for (int y = 0; y < rows + 2; y++) {
                const Three t = three(k, centre + (z - 1) * k * p->plane + (y - 1) * k * p->row + x);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    if (y < r || y > r + 2) continue;
                    const float *w = weight + 9 * z + 3 * (y - r);
                    sums[r] += t.before * w[0];
                    sums[r] += t.here * w[1];
                    sums[r] += t.after * w[2];
                }
            }
        for (int r = 0; r < rows; r++) *(lanes *)(lines + r * p->rounded + x) = sums[r];
    }
}

/* Convolves row r of plane z and, where they exist, those k apart below it; how many. */
static int convolve_rows(
    float *volume, const Padded *p, int64_t z, int64_t r, int64_t k, const float *weight, float bias, float *lines) {
    const float *centre = row_at(volume, p, z, r);
    if (r + (TOGETHER - 1) * k < p->h) {
        if (k == 1) convolve(TOGETHER, 1, centre, p, weight, bias, lines);
        else if (k == 2) convolve(TOGETHER, 2, centre, p, weight, bias, lines);
        else convolve(TOGETHER, 3, centre, p, weight, bias, lines);
        return TOGETHER;
    }
    if (k == 1) convolve(1, 1, centre, p, weight, bias, lines);
    else if (k == 2) convolve(1, 2, centre, p, weight, bias, lines);
    else convolve(1, 3, centre, p, weight, bias, lines);
    return 1;
}

/* The row to go on with after `done` from r on: first all that are k apart, then those between. p->h ends. */
static int64_t following_row(const Padded *p, int64_t r, int64_t k, int64_t done) {
    const int64_t below = r + done * k, between = r % k + 1;
    return below < p->h ? below : between < k && between < p->h ? between : p->h;
}

/* Mean and sum of squared deviations. Values are summed as differences from one of them, and parts are put together by
 * Chan's formula, so that no large sums cancel. */
typedef struct {
    double count, mean, m2;
} Moments;

typedef struct {
    double sum, square;
    float about;
    int64_t count;
} Part;

#define RUN 512 /* values that are summed in single precision */

static inline void add_row(Part *p, const float *row, int64_t w) {
    if (!p->count) {
        lanes total = {0};
        int64_t x = 0;
        for (; x + LANES <= w && x < RUN; x += LANES) total += *(const lanes *)(row + x);
        p->about = x ? sum_lanes(total) / x : row[0];
    }
    for (int64_t first = 0; first < w; first += RUN) {
        const int64_t last = first + RUN < w ? first + RUN : w;
        lanes sums = {0}, squares = {0};
        int64_t x = first;
        for (; x + LANES <= last; x += LANES) {
            const lanes difference = *(const lanes *)(row + x) - p->about;
            sums += difference;
            squares += difference * difference;
        }
        p->sum += sum_lanes(sums);
        p->square += sum_lanes(squares);
        for (; x < last; x++) {
            const float difference = row[x] - p->about;
            p->sum += difference;
            p->square += difference * difference;
        }
    }
    p->count += w;
}

static void add_part(Moments *m, const Part *p) {
    const double count = p->count, delta = p->about + p->sum / count - m->mean, total = m->count + count;
    m->mean += delta * count / total;
    m->m2 += p->square - p->sum * p->sum / count + delta * delta * m->count * count / total;
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

/* raw = depthwise convolution of a padded channel with dilation k; its moments. */
static Moments branch(
    const Shape *s, float *volume, const Padded *p, int64_t k, const float *weight, float bias, float *lines, float *raw) {
    Moments m = {0, 0, 0};
    for (int64_t z = 0; z < s->d; z++) {
        Part part = {0};
        for (int64_t r = 0, rows; r < s->h; r = following_row(p, r, k, rows)) {
            rows = convolve_rows(volume, p, z, r, k, weight, bias, lines);
            for (int64_t i = 0; i < rows; i++) {
                add_row(&part, lines + i * p->rounded, s->w);
                memcpy(raw + (z * s->h + r + i * k) * s->w, lines + i * p->rounded, s->w * sizeof(float));
            }
        }
        add_part(&m, &part);
    }
    return m;
}

/* weight: (3, C, 27), bias, gain, shift: (3, C), slope: (3). y: (N, 3C, D, H, W). */
int branches_forward(const Shape *s, const float *x, const float *weight, const float *bias, const float *gain,
                     const float *shift, const float *slope, float *y, int64_t *next) {
    const Padded p = padded_shape(s);
    const int64_t voxels = s->d * s->h * s->w;
    float *volume = zeros(p.total + TOGETHER * p.rounded), *lines = volume + p.total;
    if (!volume) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const int64_t n = task / s->c, c = task % s->c;
        pad(x + task * voxels, volume, &p);
        for (int64_t k = 0; k < DILATIONS; k++) {
            const int64_t channel = k * s->c + c;
            float *out = y + (n * DILATIONS * s->c + channel) * voxels;
            const Moments m = branch(s, volume, &p, k + 1, weight + channel * TAPS, bias[channel], lines, out);
            const Norm f = make_norm(&m, s->eps, gain[channel], shift[channel], slope[k]);
            apply(&f, out, out, voxels);
        }
    }
    free(volume);
    return 0;
}

/* sums[tap] += gradient * x shifted by the tap, over one plane. */
INLINE void add_weight_gradient(const int k, double *sums, float *volume, float *gradient, const Padded *p, int64_t z) {
    lanes total[TAPS] = {{0}};
    for (int64_t r = 0; r < p->h; r++) {
        const float *g = row_at(gradient, p, z, r), *centre = row_at(volume, p, z, r);
        for (int64_t x = 0; x < p->rounded; x += LANES) {
            const lanes here = *(const lanes *)(g + x);
#pragma GCC unroll 9
            for (int i = 0; i < 9; i++) {
                const Three t = three(k, centre + (i / 3 - 1) * k * p->plane + (i % 3 - 1) * k * p->row + x);
                total[3 * i] += here * t.before;
                total[3 * i + 1] += here * t.here;
                total[3 * i + 2] += here * t.after;
            }
        }
    }
    for (int i = 0; i < TAPS; i++) sums[i] += sum_lanes(total[i]);
}

/* Gradients of branches_forward. gy: (N, 3C, D, H, W). gx like x; gweight (N, 3, C, 27); ggain, gshift, gslope (N, 3, C): the
 * caller sums over N, and the slope's over C. The norm takes a constant away again, so the bias has no gradient. */
int branches_backward(const Shape *s, const float *x, const float *weight, const float *bias, const float *gain,
                      const float *shift, const float *slope, const float *gy, float *gx, float *gweight, float *ggain,
                      float *gshift, float *gslope, int64_t *next) {
    const Padded p = padded_shape(s);
    const int64_t voxels = s->d * s->h * s->w, area = s->h * s->w;
    float *volume = zeros(2 * p.total + TOGETHER * p.rounded + voxels), *gradient = volume + p.total;
    float *lines = gradient + p.total, *raw = lines + TOGETHER * p.rounded;
    if (!volume) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const int64_t n = task / s->c, c = task % s->c;
        float *to = gx + task * voxels;
        pad(x + task * voxels, volume, &p);
        for (int64_t k = 1; k <= DILATIONS; k++) {
            const int64_t channel = (k - 1) * s->c + c, place = n * DILATIONS * s->c + channel;
            const float *w = weight + channel * TAPS, *g = gy + place * voxels;
            const Moments m = branch(s, volume, &p, k, w, bias[channel], lines, raw);
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
    return 0;
}

/* Moments of a channel, a plane at a time. */
static Moments moments(const float *x, int64_t planes, int64_t area) {
    Moments m = {0, 0, 0};
    for (int64_t z = 0; z < planes; z++) {
        Part part = {0};
        add_row(&part, x + z * area, area);
        add_part(&m, &part);
    }
    return m;
}

/* Instance norm and PReLU of (N, C, voxels); gain and shift (C), slope (1). */
int norm_act_forward(const Shape *s, const float *x, const float *gain, const float *shift, const float *slope, float *y,
                     int64_t *next) {
    const int64_t voxels = s->d * s->h * s->w, row = s->h * s->w;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;) {
        const float *from = x + task * voxels;
        const Moments m = moments(from, s->d, row);
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

/* ---- Convolutions whose kernel is their stride (1x1x1 among them), and their transposes ----
 *
 * Matrix products of few rows with very many voxels of the coarser side. A row is a channel, or on the finer side a channel
 * at one place of the cells, in the order of torch's weights. Channels lie a power of two times an odd number of pages
 * apart, so that their same voxels compete for the same places of the caches: a chunk of all rows is copied side by side
 * first, and ROW keeps the copies out of step. */
#define CHUNK 1024
#define ROW (CHUNK + LANES)
#ifdef __AVX512F__
#define ACROSS 4 /* vectors of voxels times rows that stay in registers together */
#define DOWN 6
#else
#define ACROSS 1
#define DOWN 4
#endif
#define BLOCK (ACROSS * LANES)
#define SLICE 32
#define CACHE (1 << 19) /* bytes of a chunk that stay near */

typedef struct {
    int64_t n, in, out, d, h, w; /* channels, and size of the coarser side */
    int64_t sd, sh, sw, up;      /* cells of the input or, with up, of the output */
    int64_t parts;               /* that the voxels of a case are shared out in */
} Cells;

/* One side of the convolution: channels of cells. */
typedef struct {
    int64_t channels, sd, sh, sw, rows;
} Side;

static Side side(const Cells *s, int64_t channels, int64_t fine) {
    return fine ? (Side){channels, s->sd, s->sh, s->sw, channels * s->sd * s->sh * s->sw} : (Side){channels, 1, 1, 1, channels};
}

INLINE void copy_cells(const int to_chunk, const Cells *s, const Side *f, float *x, int64_t first, int64_t count, float *chunk) {
    const int64_t height = s->h * f->sh, width = s->w * f->sw, voxels = s->d * f->sd * height * width;
    for (int64_t done = 0, length; done < count; done += length) {
        const int64_t row = (first + done) / s->w, begin = (first + done) % s->w, z = row / s->h, y = row % s->h;
        length = s->w - begin < count - done ? s->w - begin : count - done;
        float *place = chunk + done;
        for (int64_t c = 0; c < f->channels; c++)
            for (int64_t dz = 0; dz < f->sd; dz++)
                for (int64_t dy = 0; dy < f->sh; dy++, place += f->sw * ROW) {
                    float *at = x + c * voxels + ((z * f->sd + dz) * height + y * f->sh + dy) * width + begin * f->sw;
                    if (f->sw == 2)
                        for (int64_t i = 0; i < length; i++) {
                            if (to_chunk) place[i] = at[2 * i], place[ROW + i] = at[2 * i + 1];
                            else at[2 * i] = place[i], at[2 * i + 1] = place[ROW + i];
                        }
                    else
                        for (int64_t dx = 0; dx < f->sw; dx++)
                            for (int64_t i = 0; i < length; i++) {
                                if (to_chunk) place[dx * ROW + i] = at[i * f->sw + dx];
                                else at[i * f->sw + dx] = place[dx * ROW + i];
                            }
                }
    }
}

static void gather(const Cells *s, const Side *f, const float *x, int64_t first, int64_t count, float *chunk) {
    const int64_t voxels = s->d * s->h * s->w, rounded = (count + BLOCK - 1) / BLOCK * BLOCK;
    if (f->rows != f->channels) copy_cells(1, s, f, (float *)x, first, count, chunk);
    else
        for (int64_t c = 0; c < f->channels; c++) memcpy(chunk + c * ROW, x + c * voxels + first, count * sizeof(float));
    if (rounded > count)
        for (int64_t r = 0; r < f->rows; r++) memset(chunk + r * ROW + count, 0, (rounded - count) * sizeof(float));
}

static void scatter(const Cells *s, const Side *f, float *chunk, int64_t first, int64_t count, float *y) {
    const int64_t voxels = s->d * s->h * s->w;
    if (f->rows != f->channels) copy_cells(0, s, f, y, first, count, chunk);
    else
        for (int64_t c = 0; c < f->channels; c++) memcpy(y + c * voxels + first, chunk + c * ROW, count * sizeof(float));
}

/* Sums of SLICE products are added up, not single ones: less rounding. */
INLINE void product_tile(const int down, const float *x, int64_t in, const float *weight, const float *bias, float *y) {
    for (int64_t first = 0; first < in; first += SLICE) {
        const int64_t last = first + SLICE < in ? first + SLICE : in;
        lanes sums[DOWN][ACROSS] = {{{0}}};
        for (int64_t i = first; i < last; i++)
            for (int o = 0; o < down; o++)
                for (int v = 0; v < ACROSS; v++) sums[o][v] += weight[o * in + i] * *(const lanes *)(x + i * ROW + v * LANES);
        for (int o = 0; o < down; o++)
            for (int v = 0; v < ACROSS; v++) {
                lanes *at = (lanes *)(y + o * ROW + v * LANES);
                *at = sums[o][v] + (first ? *at : (lanes){0} + (bias ? bias[o] : 0.0f));
            }
    }
}

/* y (out, ROW) = weight (out, in) times x (in, ROW), plus bias (out) or nothing. */
static void product(const float *x, int64_t in, const float *weight, const float *bias, int64_t out, int64_t count, float *y) {
    for (int64_t v = 0; v < count; v += BLOCK) {
        int64_t o = 0;
        for (; o + DOWN <= out; o += DOWN)
            product_tile(DOWN, x + v, in, weight + o * in, bias ? bias + o : NULL, y + o * ROW + v);
        for (; o < out; o++) product_tile(1, x + v, in, weight + o * in, bias ? bias + o : NULL, y + o * ROW + v);
    }
}

INLINE void outer_tile(const int down, const int across, const float *g, const float *x, int64_t count, int64_t in, double *sums) {
    lanes totals[DOWN][ACROSS] = {{{0}}};
    for (int64_t v = 0; v < count; v += LANES)
        for (int o = 0; o < down; o++)
            for (int i = 0; i < across; i++)
                totals[o][i] += *(const lanes *)(g + o * ROW + v) * *(const lanes *)(x + i * ROW + v);
    for (int o = 0; o < down; o++)
        for (int i = 0; i < across; i++) sums[o * in + i] += sum_lanes(totals[o][i]);
}

/* sums (out, in) += g (out, ROW) times x (in, ROW) transposed. */
static void outer(const float *g, const float *x, int64_t out, int64_t in, int64_t count, double *sums) {
    for (int64_t o = 0, down; o < out; o += down) {
        down = o + DOWN <= out ? DOWN : 1;
        for (int64_t i = 0, across; i < in; i += across) {
            across = i + ACROSS <= in ? ACROSS : 1;
            const float *go = g + o * ROW, *xi = x + i * ROW;
            double *at = sums + o * in + i;
            if (down == DOWN && across == ACROSS) outer_tile(DOWN, ACROSS, go, xi, count, in, at);
            else if (down == DOWN) outer_tile(DOWN, 1, go, xi, count, in, at);
            else if (across == ACROSS) outer_tile(1, ACROSS, go, xi, count, in, at);
            else outer_tile(1, 1, go, xi, count, in, at);
        }
    }
}

/* Voxels first to last-1 of a case, in chunks of `length`. */
typedef struct {
    int64_t first, last, length;
} Range;

static Range range(const Cells *s, int64_t index, int64_t rows) {
    const int64_t voxels = s->d * s->h * s->w, blocks = (voxels + BLOCK - 1) / BLOCK;
    int64_t length = CACHE / sizeof(float) / rows / BLOCK * BLOCK;
    length = length > CHUNK ? CHUNK : length < CHUNK / 4 ? CHUNK / 4 : length;
    const int64_t last = (index + 1) * blocks / s->parts * BLOCK;
    return (Range){index * blocks / s->parts * BLOCK, last < voxels ? last : voxels, length};
}

/* weight: (rows of y, rows of x), bias: (rows of y). */
int cells_forward(const Cells *s, const float *x, const float *weight, const float *bias, float *y, int64_t *next) {
    const Side from = side(s, s->in, !s->up), to = side(s, s->out, s->up);
    const int64_t voxels = s->d * s->h * s->w;
    float *chunk = malloc((from.rows + to.rows) * ROW * sizeof(float)), *result = chunk + from.rows * ROW;
    if (!chunk) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->parts;) {
        const int64_t n = task / s->parts;
        const Range p = range(s, task % s->parts, from.rows + to.rows);
        for (int64_t v = p.first; v < p.last; v += p.length) {
            const int64_t count = p.last - v < p.length ? p.last - v : p.length;
            gather(s, &from, x + n * from.rows * voxels, v, count, chunk);
            product(chunk, from.rows, weight, bias, to.rows, count, result);
            scatter(s, &to, result, v, count, y + n * to.rows * voxels);
        }
    }
    free(chunk);
    return 0;
}

/* Gradients of cells_forward. transposed: (rows of x, rows of y). gx like x; gweight (N, parts, rows of y, rows of x) and
 * gbias (N, parts, rows of y) in double precision, zero before, which the caller sums over cases and parts. */
int cells_backward(const Cells *s, const float *x, const float *transposed, const float *gy, float *gx, double *gweight,
                   double *gbias, int64_t *next) {
    const Side from = side(s, s->in, !s->up), to = side(s, s->out, s->up);
    const int64_t voxels = s->d * s->h * s->w;
    float *chunk = malloc((2 * from.rows + to.rows) * ROW * sizeof(float));
    float *result = chunk + from.rows * ROW, *g = result + from.rows * ROW;
    if (!chunk) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->parts;) {
        const int64_t n = task / s->parts;
        double *of_weight = gweight + task * to.rows * from.rows, *of_bias = gbias + task * to.rows;
        const Range p = range(s, task % s->parts, 2 * from.rows + to.rows);
        for (int64_t v = p.first; v < p.last; v += p.length) {
            const int64_t count = p.last - v < p.length ? p.last - v : p.length;
            gather(s, &from, x + n * from.rows * voxels, v, count, chunk);
            gather(s, &to, gy + n * to.rows * voxels, v, count, g);
            product(g, to.rows, transposed, NULL, from.rows, count, result);
            scatter(s, &from, result, v, count, gx + n * from.rows * voxels);
            outer(g, chunk, to.rows, from.rows, count, of_weight);
            for (int64_t o = 0; o < to.rows; o++) {
                lanes total = {0};
                for (int64_t i = 0; i < count; i += LANES) total += *(const lanes *)(g + o * ROW + i);
                of_bias[o] += sum_lanes(total);
            }
        }
    }
    free(chunk);
    return 0;
}

/* ---- 7x7x7 convolution of several maps to a single one, zero-padded ----
 *
 * A task is a plane; the volumes, (N, maps) or (N) of them, were padded by `pad_volumes`, `padded_floats` each. */
#define WIDE 7

int64_t padded_floats(const Shape *s) { return padded_shape(s).total; }

/* volumes: zero before. */
int pad_volumes(const Shape *s, const float *x, float *volumes, int64_t *next) {
    const Padded p = padded_shape(s);
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->c;)
        pad(x + task * s->d * s->h * s->w, volumes + task * p.total, &p);
    return 0;
}

/* sums += the cross-correlation with one map's kernel around `centre`, for `across` vectors of a row. */
INLINE void wide_tile(const int across, const float *centre, const Padded *p, const float *weight, lanes *sums) {
    for (int z = 0; z < WIDE; z++)
        for (int y = 0; y < WIDE; y++) {
            const float *row = centre + (z - HALO) * p->plane + (y - HALO) * p->row - HALO;
            for (int x = 0; x < WIDE; x++)
                for (int v = 0; v < across; v++)
                    sums[v] += weight[(z * WIDE + y) * WIDE + x] * *(const lanes *)(row + x + v * LANES);
        }
}

/* weight: (C, 343). y: (N, D, H, W). */
int wide_forward(const Shape *s, float *volumes, const float *weight, float *y, int64_t *next) {
    const Padded p = padded_shape(s);
    float *line = malloc(p.rounded * sizeof(float));
    if (!line) return 1;
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->d;)
        for (int64_t r = 0; r < s->h; r++) {
            for (int64_t x = 0, across; x < p.rounded; x += across * LANES) {
                across = x + ACROSS * LANES <= p.rounded ? ACROSS : 1;
                lanes sums[ACROSS] = {{0}};
                for (int64_t c = 0; c < s->c; c++) {
                    float *volume = volumes + (task / s->d * s->c + c) * p.total;
                    const float *centre = row_at(volume, &p, task % s->d, r) + x, *kernel = weight + c * WIDE * WIDE * WIDE;
                    if (across == ACROSS) wide_tile(ACROSS, centre, &p, kernel, sums);
                    else wide_tile(1, centre, &p, kernel, sums);
                }
                memcpy(line + x, sums, across * LANES * sizeof(float));
            }
            memcpy(y + (task * s->h + r) * s->w, line, s->w * sizeof(float));
        }
    free(line);
    return 0;
}

/* gradients: of y, padded. gweight: (N, D, C, 343), a plane's part of each tap's sum. */
int wide_weight_gradient(const Shape *s, float *volumes, float *gradients, float *gweight, int64_t *next) {
    const Padded p = padded_shape(s);
    for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < s->n * s->d;)
        for (int64_t i = 0; i < s->c * WIDE * WIDE; i++) {
            const int64_t c = i / (WIDE * WIDE), z = task % s->d + i / WIDE % WIDE - HALO, y = i % WIDE - HALO;
            float *volume = volumes + (task / s->d * s->c + c) * p.total;
            lanes totals[WIDE] = {{0}};
            for (int64_t r = 0; r < s->h; r++) {
                const float *g = row_at(gradients + task / s->d * p.total, &p, task % s->d, r);
                const float *row = row_at(volume, &p, z, r + y) - HALO;
                for (int64_t x = 0; x < p.rounded; x += LANES)
                    for (int t = 0; t < WIDE; t++) totals[t] += *(const lanes *)(g + x) * *(const lanes *)(row + x + t);
            }
            for (int t = 0; t < WIDE; t++) gweight[(task * s->c * WIDE * WIDE + i) * WIDE + t] = sum_lanes(totals[t]);
        }
    return 0;
}
