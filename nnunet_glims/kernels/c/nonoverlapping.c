#include "norms.h"

/* Convolutions whose kernel size equals their stride (1x1x1 among them), and their transposes.
 *
 * These are products of a small matrix with a matrix that has one column per voxel of the coarser side. A row of the latter is a
 * channel; on the finer side, it is a channel at one position inside the kernel, in the order of torch's weights. The addresses
 * of one voxel in all channels differ by multiples of a large power of two, so that they compete for the same sets of the
 * caches. Therefore a chunk of all rows is first copied into a buffer, whose rows are ROW apart to avoid the same conflict. */
#define CHUNK 1024
#define ROW (CHUNK + LANES)
#ifdef __AVX512F__
#define ACROSS 4 /* vectors of voxels, times DOWN rows, whose sums are in registers together */
#define DOWN 6
#else
#define ACROSS 2
#define DOWN 4
#endif
#define BLOCK (ACROSS * LANES)
#define SLICE 64        /* products that are summed before they are added to the result, for less rounding */
#define AHEAD 2         /* rows that are prefetched */
#define CACHE (1 << 19) /* bytes of a chunk that fit into the second-level cache */

typedef struct {
    int64_t n, in, out, d, h, w;    /* cases, channels of x and y, size of the coarser side */
    int64_t sd, sh, sw, transposed; /* kernel size, and whether the finer side is that of y */
    int64_t parts;                  /* into which the voxels of a case are divided */
    int64_t threads;
    float eps;
} Convolution;

/* One side of the convolution: channels, kernel size on this side (1 on the coarser), and rows. */
typedef struct {
    int64_t channels, sd, sh, sw, rows;
} Side;

static Side side(const Convolution *s, int64_t channels, int64_t fine) {
    return fine ? (Side){channels, s->sd, s->sh, s->sw, channels * s->sd * s->sh * s->sw} : (Side){channels, 1, 1, 1, channels};
}

/* Copy between a tensor of the finer side and a chunk, for `count` kernel positions from `first` on. Each row of the tensor is
 * copied through `line`. */
INLINE void copy_footprints(const int to_chunk, const Convolution *s, const Side *f, stored *x, int64_t first, int64_t count,
                            float *chunk) {
    const int64_t height = s->h * f->sh, width = s->w * f->sw, voxels = s->d * f->sd * height * width;
    float line[LINE];
    const int64_t most = LINE / f->sw;
    for (int64_t done = 0, length; done < count; done += length) {
        const int64_t row = (first + done) / s->w, begin = (first + done) % s->w, z = row / s->h, y = row % s->h;
        length = s->w - begin < count - done ? s->w - begin : count - done;
        length = length < most ? length : most;
        float *place = chunk + done;
        for (int64_t c = 0; c < f->channels; c++)
            for (int64_t dz = 0; dz < f->sd; dz++)
                for (int64_t dy = 0; dy < f->sh; dy++, place += f->sw * ROW) {
                    stored *at = x + c * voxels + ((z * f->sd + dz) * height + y * f->sh + dy) * width + begin * f->sw;
                    if (to_chunk) to_floats(at, line, length * f->sw);
                    if (f->sw == 2)
                        for (int64_t i = 0; i < length; i++) {
                            if (to_chunk) place[i] = line[2 * i], place[ROW + i] = line[2 * i + 1];
                            else line[2 * i] = place[i], line[2 * i + 1] = place[ROW + i];
                        }
                    else
                        for (int64_t dx = 0; dx < f->sw; dx++)
                            for (int64_t i = 0; i < length; i++) {
                                if (to_chunk) place[dx * ROW + i] = line[i * f->sw + dx];
                                else line[i * f->sw + dx] = place[dx * ROW + i];
                            }
                    if (!to_chunk) from_floats(line, at, length * f->sw);
                }
    }
}

/* The products read words of x: the values of one voxel in WIDTH consecutive rows. Weights are stored alike. */
#ifdef BFLOAT16
#define WIDTH 2
typedef uint32_t Word;

INLINE lanes add_product(lanes sum, Word weight, const Word *x) {
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(x), (__m512bh)_mm512_set1_epi32(weight));
}

/* Interleave the values of two rows. */
INLINE void interleave(const float *rows, int64_t apart, Word *words, int64_t count) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                           4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t i = 0; i < count; i += LANES) {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(rows + apart + i), _mm512_loadu_ps(rows + i));
        _mm512_storeu_si512(words + i, _mm512_permutexvar_epi16(turns, both));
    }
}
#else
#define WIDTH 1
typedef float Word;

INLINE lanes add_product(lanes sum, Word weight, const Word *x) { return sum + weight * *(const lanes *)x; }
#endif

static int64_t words(int64_t rows) { return (rows + WIDTH - 1) / WIDTH; }

/* Copy `count` columns from `first` on into a chunk, as words. norms: of the channels, applied with their PReLU, or NULL.
 * chunk: room for all rows; words(rows) rows of it are used in the end. */
static void gather(const Convolution *s, const Side *f, const stored *x, const Norm *norms, int64_t first, int64_t count,
                   float *chunk) {
    const int64_t voxels = s->d * s->h * s->w, rounded = (count + BLOCK - 1) / BLOCK * BLOCK;
    const int fine = f->rows != f->channels;
    if (fine) copy_footprints(1, s, f, (stored *)x, first, count, chunk);
    for (int64_t r = 0; r < f->rows; r++) {
        float *row = chunk + r * ROW;
        if (!fine) {
            if (r + AHEAD < f->rows) prefetch(x + (r + AHEAD) * voxels + first, count);
            to_floats(x + r * voxels + first, row, count);
        }
        if (norms) apply(norms + r / (f->rows / f->channels), row, row, count);
        memset(row + count, 0, (rounded - count) * sizeof(float));
#ifdef BFLOAT16
        if (r % 2 == 0 && r == f->rows - 1) memset(row + ROW, 0, rounded * sizeof(float));
        if (r % 2 || r == f->rows - 1) interleave(chunk + r / 2 * 2 * ROW, ROW, (Word *)chunk + r / 2 * ROW, rounded);
#endif
    }
}

/* Copy `count` columns of a chunk into y. */
static void scatter(const Convolution *s, const Side *f, float *chunk, int64_t first, int64_t count, stored *y) {
    const int64_t voxels = s->d * s->h * s->w;
    const int bypass = s->n * f->rows * voxels * sizeof(stored) > LARGE;
    if (f->rows != f->channels) copy_footprints(0, s, f, y, first, count, chunk);
    else
        for (int64_t c = 0; c < f->channels; c++) write_values(bypass, chunk + c * ROW, y + c * voxels + first, count);
}

INLINE void product_tile(const int down, const Word *x, int64_t in, const Word *weight, const float *bias, float *y) {
    for (int64_t first = 0; first < in; first += SLICE) {
        const int64_t last = first + SLICE < in ? first + SLICE : in;
        lanes sums[DOWN][ACROSS] = {{{0}}};
        for (int64_t i = first; i < last; i++)
            for (int o = 0; o < down; o++)
                for (int v = 0; v < ACROSS; v++) sums[o][v] = add_product(sums[o][v], weight[o * in + i], x + i * ROW + v * LANES);
        for (int o = 0; o < down; o++)
            for (int v = 0; v < ACROSS; v++) {
                lanes *at = (lanes *)(y + o * ROW + v * LANES);
                *at = sums[o][v] + (first ? *at : (lanes){0} + (bias ? bias[o] : 0.0f));
            }
    }
}

/* y (out, ROW) = weight (out, in) times x (in, ROW), plus bias (out) where it is given. in: number of words. */
static void product(const Word *x, int64_t in, const Word *weight, const float *bias, int64_t out, int64_t count, float *y) {
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

/* The voxels first to last - 1 of a case, in chunks of `length`. */
typedef struct {
    int64_t first, last, length;
} Range;

static Range range(const Convolution *s, int64_t index, int64_t rows) {
    const int64_t voxels = s->d * s->h * s->w, blocks = (voxels + BLOCK - 1) / BLOCK;
    int64_t length = CACHE / sizeof(float) / rows / BLOCK * BLOCK;
    length = length > CHUNK ? CHUNK : length < CHUNK / 4 ? CHUNK / 4 : length;
    const int64_t last = (index + 1) * blocks / s->parts * BLOCK;
    return (Range){index * blocks / s->parts * BLOCK, last < voxels ? last : voxels, length};
}

/* weight: (rows of y, words of the rows of x); bias: (rows of y). norms: (N, channels of x), applied to x with their PReLU, or
 * NULL. moments: (N, parts, channels of y), zero before, receives the moments of y; or NULL. */
int nonoverlapping_forward(const Convolution *s, const stored *x, const Norm *norms, const Word *weight, const float *bias,
                           stored *y, Moments *moments) {
    const Side from = side(s, s->in, !s->transposed), to = side(s, s->out, s->transposed);
    const int64_t voxels = s->d * s->h * s->w;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *chunk = malloc((from.rows + 1 + to.rows) * ROW * sizeof(float)), *result = chunk + (from.rows + 1) * ROW;
        failed = !chunk;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->n * s->parts; task++) {
            if (failed) continue;
            const int64_t n = task / s->parts;
            const Range p = range(s, task % s->parts, from.rows + to.rows);
            for (int64_t v = p.first; v < p.last; v += p.length) {
                const int64_t count = p.last - v < p.length ? p.last - v : p.length;
                gather(s, &from, x + n * from.rows * voxels, norms ? norms + n * s->in : NULL, v, count, chunk);
                product((const Word *)chunk, words(from.rows), weight, bias, to.rows, count, result);
                scatter(s, &to, result, v, count, y + n * to.rows * voxels);
                for (int64_t r = 0; moments && r < to.rows; r++) {
                    Part part = {0};
                    add_values(&part, result + r * ROW, count);
                    add_part(moments + task * s->out + r / (to.rows / s->out), &part);
                }
            }
        }
        wait_for_writes();
        free(chunk);
    }
    return failed;
}

/* norms (N, C) from the moments (N, parts, C) of all parts, without gain and shift, and the slope (1) of the PReLU. */
int norms_from_moments(const Convolution *s, const Moments *parts, const float *slope, Norm *norms) {
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->n * s->out; task++) {
        Moments m = {0, 0, 0};
        for (int64_t i = 0; i < s->parts; i++) add_moments(&m, parts + (task / s->out * s->parts + i) * s->out + task % s->out);
        norms[task] = make_norm(&m, s->eps, 1, 0, slope[0]);
    }
    return 0;
}

#ifndef BFLOAT16
/* Gradients of nonoverlapping_forward. weight: transposed, (rows of x, rows of y). gy: gradient of y; gx: like x; gweight:
 * (N, parts, rows of y, rows of x) and gbias: (N, parts, rows of y) in double precision, zero before, which the caller sums over
 * cases and parts. */
int nonoverlapping_backward(const Convolution *s, const float *x, const float *weight, const float *gy, float *gx, double *gweight,
                            double *gbias) {
    const Side from = side(s, s->in, !s->transposed), to = side(s, s->out, s->transposed);
    const int64_t voxels = s->d * s->h * s->w;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *chunk = malloc((2 * from.rows + to.rows) * ROW * sizeof(float));
        float *result = chunk + from.rows * ROW, *g = result + from.rows * ROW;
        failed = !chunk;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->n * s->parts; task++) {
            if (failed) continue;
            const int64_t n = task / s->parts;
            double *of_weight = gweight + task * to.rows * from.rows, *of_bias = gbias + task * to.rows;
            const Range p = range(s, task % s->parts, 2 * from.rows + to.rows);
            for (int64_t v = p.first; v < p.last; v += p.length) {
                const int64_t count = p.last - v < p.length ? p.last - v : p.length;
                gather(s, &from, x + n * from.rows * voxels, NULL, v, count, chunk);
                gather(s, &to, gy + n * to.rows * voxels, NULL, v, count, g);
                product(g, to.rows, weight, NULL, from.rows, count, result);
                scatter(s, &from, result, v, count, gx + n * from.rows * voxels);
                outer(g, chunk, to.rows, from.rows, count, of_weight);
                for (int64_t o = 0; o < to.rows; o++) {
                    lanes total = {0};
                    for (int64_t i = 0; i < count; i += LANES) total += *(const lanes *)(g + o * ROW + i);
                    of_bias[o] += sum_lanes(total);
                }
            }
        }
        wait_for_writes();
        free(chunk);
    }
    return failed;
}
#endif
