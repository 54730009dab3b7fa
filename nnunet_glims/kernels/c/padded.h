#ifndef PADDED_H
#define PADDED_H

#include "lanes.h"

#define HALO 3 /* the largest dilation, and half of the widest kernel */

/* Planes of a volume with zeros around them, `slots` at a time: plane z lies where plane z - slots was. Rows begin LANES
 * values after a multiple of LANES. */
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

/* All planes, so that neighbours lie side by side. */
static inline Padded whole(const Shape *s) { return padded_shape(s, s->d + 2 * HALO); }

static inline float *row_at(float *volume, const Padded *p, int64_t z, int64_t y) {
    return volume + (z + HALO) % p->slots * p->plane + (y + HALO) * p->row + LANES;
}

/* Plane z of x, zero outside. */
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
