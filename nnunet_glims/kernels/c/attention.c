#include "lanes.h"

/* Attention inside windows, a head and a part of the windows at a time: the head's bias is looked up once and stays near. */
#ifdef __AVX512F__
#define ROWS 6 /* queries whose scores are computed together */
#define ACROSS 2
#else
#define ROWS 4
#define ACROSS 2
#endif
#define BLOCK (ACROSS * LANES)
#define MOST_PARTS 4
#define NEVER -1e30f /* the score of keys that are not there */

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    int64_t windows, heads, voxels, width, masks, threads; /* voxels of a window, values of a head */
    float scale;
} Attention;

INLINE lanes pick(ints which, lanes a, lanes b) { return (lanes)((which & (ints)a) | (~which & (ints)b)); }

/* e^x for x <= 0, as 2^n e^r with |r| <= ln(2) / 2; what is not a number stays so. */
INLINE lanes exponential(lanes x) {
    const lanes none = {0};
    x = pick(x < none - 87, none - 87, x);
    const float whole = 12582912; /* added, leaves no room for binary places */
    const lanes n = (x * 1.44269504f + whole) - whole;
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

/* Buffers of a thread: keys transposed (width, columns), values and queries (voxels, width), bias (voxels, columns). */
typedef struct {
    int64_t columns, width; /* rounded up to whole blocks and vectors */
    float *bias, *keys, *values, *queries, *scores;
} Room;

static Room make_room(const Attention *s) {
    Room room = {(s->voxels + BLOCK - 1) / BLOCK * BLOCK, (s->width + LANES - 1) / LANES * LANES, 0, 0, 0, 0, 0};
    room.bias = zeros(room.columns * (s->voxels + room.width + ROWS) + 2 * s->voxels * room.width);
    if (!room.bias) return room;
    room.keys = room.bias + s->voxels * room.columns;
    room.scores = room.keys + room.width * room.columns;
    room.values = room.scores + ROWS * room.columns;
    room.queries = room.values + s->voxels * room.width;
    return room;
}

static void look_up_bias(const Attention *s, const Room *room, const float *table, const int64_t *index, int64_t head) {
    for (int64_t i = 0; i < s->voxels; i++) {
        float *row = room->bias + i * room->columns;
        for (int64_t j = 0; j < s->voxels; j++) row[j] = table[index[i * s->voxels + j] * s->heads + head];
        for (int64_t j = s->voxels; j < room->columns; j++) row[j] = NEVER;
    }
}

/* qkv: of one window, (voxels, 3, heads, width). */
static void unpack(const Attention *s, const Room *room, const stored *qkv, int64_t head) {
    const int64_t step = s->heads * s->width;
    for (int64_t i = 0; i < s->voxels; i++) {
        const stored *from = qkv + 3 * i * step + head * s->width;
        float *query = room->queries + i * room->width;
        to_floats(from + step, query, s->width);
        for (int64_t e = 0; e < s->width; e++) room->keys[e * room->columns + i] = query[e];
        to_floats(from, query, s->width);
        for (int64_t e = 0; e < s->width; e++) query[e] *= s->scale;
        to_floats(from + 2 * step, room->values + i * room->width, s->width);
    }
}

INLINE void score(const int rows, const Attention *s, const Room *room, int64_t first, const float *mask) {
    const int64_t columns = room->columns;
    const float *queries = room->queries + first * room->width;
    for (int64_t x = 0; x < columns; x += BLOCK) {
        lanes sums[ROWS][ACROSS] = {{{0}}};
        for (int64_t e = 0; e < s->width; e++)
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < ACROSS; v++)
                    sums[r][v] += queries[r * room->width + e] * *(const lanes *)(room->keys + e * columns + x + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < ACROSS; v++) {
                const int64_t place = x + v * LANES;
                *(lanes *)(room->scores + r * columns + place) = sums[r][v] + *(const lanes *)(room->bias + (first + r) * columns + place);
            }
    }
    for (int r = 0; mask && r < rows; r++)
        for (int64_t j = 0; j < s->voxels; j++) room->scores[r * columns + j] += mask[(first + r) * s->voxels + j];
}

/* The scores become e to what they are below their greatest; one by their sum. */
INLINE float weigh(float *scores, int64_t columns) {
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

/* out: of one window, (voxels, heads, width). */
INLINE void attend(const int rows, const Attention *s, const Room *room, int64_t first, const float *mask, int64_t head, stored *out) {
    float shares[ROWS], line[BLOCK];
    score(rows, s, room, first, mask);
    for (int r = 0; r < rows; r++) shares[r] = weigh(room->scores + r * room->columns, room->columns);
    for (int64_t e = 0; e < room->width; e += LANES) {
        lanes sums[ROWS] = {{0}};
        for (int64_t j = 0; j < s->voxels; j++)
            for (int r = 0; r < rows; r++)
                sums[r] += room->scores[r * room->columns + j] * *(const lanes *)(room->values + j * room->width + e);
        for (int r = 0; r < rows; r++) {
            *(lanes *)line = sums[r] * shares[r];
            from_floats(line, out + ((first + r) * s->heads + head) * s->width + e, s->width - e < LANES ? s->width - e : LANES);
        }
    }
}

/* qkv: (windows, voxels, 3, heads, width). table: (offsets, heads); index: (voxels, voxels), the row of the table for a query
 * and a key. mask: (masks, voxels, voxels), added to the scores of window w as mask w % masks, or NULL.
 * out: (windows, voxels, heads, width). */
int attention_forward(const Attention *s, const stored *qkv, const float *table, const int64_t *index, const float *mask, stored *out) {
    const int64_t parts = s->windows < MOST_PARTS ? s->windows : MOST_PARTS, each = s->voxels * s->heads * s->width;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        const Room room = make_room(s);
        failed = !room.bias;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s->heads * parts; task++) {
            if (failed) continue;
            const int64_t head = task / parts, part = task % parts;
            look_up_bias(s, &room, table, index, head);
            for (int64_t w = part * s->windows / parts; w < (part + 1) * s->windows / parts; w++) {
                const float *of_window = mask ? mask + w % s->masks * s->voxels * s->voxels : NULL;
                unpack(s, &room, qkv + 3 * w * each, head);
                int64_t i = 0;
                for (; i + ROWS <= s->voxels; i += ROWS) attend(ROWS, s, &room, i, of_window, head, out + w * each);
                for (; i < s->voxels; i++) attend(1, s, &room, i, of_window, head, out + w * each);
            }
        }
        free(room.bias);
    }
    return failed;
}
