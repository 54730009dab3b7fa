#ifndef PADDED_H
#define PADDED_H

#include "lanes.h"

#define HALO 3 /* margin of zeros: the largest dilation, and half of a 7x7x7 kernel */

/* Layout of a volume with a margin of zeros. Memory holds `slots` planes: plane z takes the place of plane z - slots. A row
 * is `w` values rounded up to `rounded`, with LANES values before and after it. */
typedef struct {
    int64_t d, h, w, rounded, row, plane, slots, total;
} Padded;

static inline Padded padded_shape(const Shape *s, int64_t slots) {
    Padded p = {s->d, s->h, s->w, (s->w + LANES - 1) / LANES * LANES, 0, 0, slots, 0};
    p.row = p.rounded + 2 * LANES;
    p.plane = p.row * (s->h + 2 * HALO);
    p.total = p.plane * slots;
    return p;
}

/* Layout with a slot for every plane. */
static inline Padded whole_volume(const Shape *s) { return padded_shape(s, s->d + 2 * HALO); }

static inline float *row_at(float *volume, const Padded *p, int64_t z, int64_t y) {
    return volume + (z + HALO) % p->slots * p->plane + (y + HALO) * p->row + LANES;
}

/* Copy plane z of x into its slot; zeros where there is no such plane. */
static inline void pad_plane(const stored *x, float *volume, const Padded *p, int64_t z) {
    const int inside = z >= 0 && z < p->d;
    for (int64_t y = 0; y < p->h; y++)
        if (inside) to_floats(x + (z * p->h + y) * p->w, row_at(volume, p, z, y), p->w);
        else memset(row_at(volume, p, z, y), 0, p->w * sizeof(float));
}

static inline void pad(const stored *x, float *volume, const Padded *p) {
    for (int64_t z = 0; z < p->d; z++) pad_plane(x, volume, p, z);
}

#endif
