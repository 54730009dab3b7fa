#include "lanes.h"

/* Attention within windows. A task is one head and a part of the windows, so that the bias of the head is looked up once and
 * stays in the cache. */
#ifdef __AVX512F__
#define ROWS 6 /* queries that are processed together */
#define ACROSS 2
#else
#define ROWS 4
#define ACROSS 2
#endif
#define BLOCK (ACROSS * LANES)
#define MOST_PARTS 4
#define EXCLUDED -1e30f /* score of the columns beyond the last key */

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    int64_t windows, heads, voxels, width, masks, threads; /* voxels of a window, values of a head */
    float scale;
} Attention;

INLINE lanes pick(ints which, lanes a, lanes b) { return (lanes)((which & (ints)a) | (~which & (ints)b)); }

/* e^x for x <= 0, as 2^n e^r with |r| <= ln(2) / 2. NaN stays NaN. */
INLINE lanes exponential(lanes x) {
    const lanes none = {0};
    x = pick(x < none - 87, none - 87, x);
    const float rounding = 12582912; /* adding 1.5 * 2^23 rounds to an integer */
    const lanes n = (x * 1.44269504f + rounding) - rounding;
    const lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes series = none + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1;
    series = series * r + 1;
    return series * (lanes)((__builtin_convertvector(n, ints) + 127) << 23);
}

/* Buffers of a thread: keys transposed (width, columns), values and queries (voxels, width), bias (voxels, columns), scores
 * (ROWS, columns). */
typedef struct {
    int64_t columns, width; /* rounded up to whole blocks and vectors */
    float *bias, *keys, *values, *queries, *scores;
} Buffers;

static Buffers make_buffers(const Attention *s) {
    Buffers buffers = {(s->voxels + BLOCK - 1) / BLOCK * BLOCK, (s->width + LANES - 1) / LANES * LANES, 0, 0, 0, 0, 0};
    buffers.bias = zeros(buffers.columns * (s->voxels + buffers.width + ROWS) + 2 * s->voxels * buffers.width);
    if (!buffers.bias) return buffers;
    buffers.keys = buffers.bias + s->voxels * buffers.columns;
    buffers.scores = buffers.keys + buffers.width * buffers.columns;
    buffers.values = buffers.scores + ROWS * buffers.columns;
    buffers.queries = buffers.values + s->voxels * buffers.width;
    return buffers;
}

static void look_up_bias(const Attention *s, const Buffers *buffers, const float *table, const int64_t *index, int64_t head) {
    for (int64_t i = 0; i < s->voxels; i++) {
        float *row = buffers->bias + i * buffers->columns;
        for (int64_t j = 0; j < s->voxels; j++) row[j] = table[index[i * s->voxels + j] * s->heads + head];
        for (int64_t j = s->voxels; j < buffers->columns; j++) row[j] = EXCLUDED;
    }
}

/* Copy queries (scaled), keys and values of one head into the buffers. qkv: of one window, (voxels, 3, heads, width). */
static void unpack(const Attention *s, const Buffers *buffers, const stored *qkv, int64_t head) {
    const int64_t step = s->heads * s->width;
    for (int64_t i = 0; i < s->voxels; i++) {
        const stored *from = qkv + 3 * i * step + head * s->width;
        float *query = buffers->queries + i * buffers->width;
        to_floats(from + step, query, s->width);
        for (int64_t e = 0; e < s->width; e++) buffers->keys[e * buffers->columns + i] = query[e];
        to_floats(from, query, s->width);
        for (int64_t e = 0; e < s->width; e++) query[e] *= s->scale;
        to_floats(from + 2 * step, buffers->values + i * buffers->width, s->width);
    }
}

INLINE void compute_scores(const int rows, const Attention *s, const Buffers *buffers, int64_t first, const float *mask) {
    const int64_t columns = buffers->columns;
    const float *queries = buffers->queries + first * buffers->width;
    for (int64_t x = 0; x < columns; x += BLOCK) {
        lanes sums[ROWS][ACROSS] = {{{0}}};
        for (int64_t e = 0; e < s->width; e++)
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < ACROSS; v++)
                    sums[r][v] += queries[r * buffers->width + e] * *(const lanes *)(buffers->keys + e * columns + x + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < ACROSS; v++) {
                const int64_t place = x + v * LANES;
                const lanes bias = *(const lanes *)(buffers->bias + (first + r) * columns + place);
                *(lanes *)(buffers->scores + r * columns + place) = sums[r][v] + bias;
            }
    }
    for (int r = 0; mask && r < rows; r++)
        for (int64_t j = 0; j < s->voxels; j++) buffers->scores[r * columns + j] += mask[(first + r) * s->voxels + j];
}

/* Replace each score by e^(score - highest score); return 1 / their sum. */
INLINE float exponentiate(float *scores, int64_t columns) {
    lanes most = *(const lanes *)scores, total = {0};
    for (int64_t x = 0; x < columns; x += LANES) {
        const lanes here = *(const lanes *)(scores + x);
        most = pick(here > most, here, most);
    }
    float greatest = most[0];
    for (int i = 1; i < LANES; i++) greatest = most[i] > greatest ? most[i] : greatest;
    for (int64_t x = 0; x < columns; x += LANES) {
        const lanes here = exponential(*(const lanes *)(scores + x) - greatest);
        *(lanes *)(scores + x) = here;
        total += here;
    }
    return 1 / sum_lanes(total);
}

/* Attention of `rows` queries from `first` on. out: of one window, (voxels, heads, width). */
INLINE void attend_rows(const int rows, const Attention *s, const Buffers *buffers, int64_t first, const float *mask,
                        int64_t head, stored *out) {
    float normalisers[ROWS], line[BLOCK];
    compute_scores(rows, s, buffers, first, mask);
    for (int r = 0; r < rows; r++) normalisers[r] = exponentiate(buffers->scores + r * buffers->columns, buffers->columns);
    for (int64_t e = 0; e < buffers->width; e += LANES) {
        lanes sums[ROWS] = {{0}};
        for (int64_t j = 0; j < s->voxels; j++)
            for (int r = 0; r < rows; r++)
                sums[r] += buffers->scores[r * buffers->columns + j] * *(const lanes *)(buffers->values + j * buffers->width + e);
        for (int r = 0; r < rows; r++) {
            *(lanes *)line = sums[r] * normalisers[r];
            from_floats(line, out + ((first + r) * s->heads + head) * s->width + e, s->width - e < LANES ? s->width - e : LANES);
        }
    }
}

/* qkv: (windows, voxels, 3, heads, width). table: (offsets, heads); index: (voxels, voxels), the row of the table for a query
 * and a key. mask: (masks, voxels, voxels) or NULL; mask w % masks is added to the scores of window w.
 * out: (windows, voxels, heads, width). */
int attention_forward(const Attention *s, const stored *qkv, const float *table, const int64_t *index, const float *mask,
                      stored *out) {
    const int64_t parts = s->windows < MOST_PARTS ? s->windows : MOST_PARTS, window_values = s->voxels * s->heads * s->width;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        const Buffers buffers = make_buffers(s);
        failed = !buffers.bias;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->heads * parts; task++) {
            if (failed) continue;
            const int64_t head = task / parts, part = task % parts;
            look_up_bias(s, &buffers, table, index, head);
            for (int64_t w = part * s->windows / parts; w < (part + 1) * s->windows / parts; w++) {
                const float *of_window = mask ? mask + w % s->masks * s->voxels * s->voxels : NULL;
                unpack(s, &buffers, qkv + 3 * w * window_values, head);
                int64_t i = 0;
                stored *to = out + w * window_values;
                for (; i + ROWS <= s->voxels; i += ROWS) attend_rows(ROWS, s, &buffers, i, of_window, head, to);
                for (; i < s->voxels; i++) attend_rows(1, s, &buffers, i, of_window, head, to);
            }
        }
        free(buffers.bias);
    }
    return failed;
}
