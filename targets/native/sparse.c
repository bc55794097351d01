/* Executes sparse programs: small networks whose weights are mostly zero, float32, one thread.
 *
 * The file's format is documented in compressors/sparse_program.py. A program is checked in full
 * before anything of it runs (`sparse_check`): every offset, shape and column index; what comes
 * after relies on that and checks nothing twice. Nothing is allocated here: the caller gives an
 * arena of the size that the check tells.
 *
 * Convolutions are computed directly ("im2col" without the matrix): the input is copied once into
 * planes with its padding, split by the phases of the stride, so that every tap of a kernel is a
 * constant offset and a run of neighbouring outputs reads neighbouring floats. A non-zero weight
 * then costs one multiply-add for each vector of outputs, as in Park et al. 2017, "Faster CNNs
 * with Direct Sparse Convolutions and Guided Pruning". Output positions are counted along the
 * planes' rows; those that lie in the margin between two rows are computed and dropped.
 *
 * Freestanding C99 with GNU vectors. The file includes itself to have its kernels for two vector
 * lengths.
 */

#ifndef SPARSE_KERNELS

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "program files are little-endian"
#endif

/* Without the C library's headers; the loader finds the functions in the process. */
#define memcpy __builtin_memcpy
#define memcmp __builtin_memcmp
#define memset __builtin_memset

#define EXPORT __attribute__((visibility("default")))
#define MOST 4096u           /* values or operations in a program */
#define MOST_ELEMENTS (1u << 28)
#define MOST_ARENA ((uint64_t)1 << 38)
#define TILE 32u             /* outputs that a kernel computes at once */
#define SLACK 64u            /* floats behind each buffer that the last tile may read */
#define HEAD_BYTES 64u
#define VALUE_BYTES 16u
#define OP_BYTES 128u

enum { CONV = 1, FC = 2, MAXPOOL = 3, AVGPOOL = 4, ADD = 5, CONCAT = 6, COPY = 7, STRETCH = 8 };
enum { DENSE = 0, CSR = 1, BLOCK = 2 };
enum { COUNT_PAD = 1, REPEAT = 2 };

typedef struct {
    uint32_t kind, output, input, other;
    float low, high;
    uint32_t kernel[2], stride[2], dilation[2], before[2], after[2];
    uint32_t groups, format, flags, stored, values, index, counts, bias, list, list_length;
    uint32_t reserved[6];
} Record;

typedef struct {
    uint32_t rank, c, h, w;
} Shape;

/* One or four rows of weights that are computed together. Without offsets they are contiguous. */
typedef struct {
    const uint32_t *offsets;
    const float *values;
    uint32_t count, base, row, live, wide;
} Panel;

typedef struct {
    Record record;
    Shape in, out;
    const float *source, *other, *bias;
    float *target, *planes;
    const Panel *panels;
    uint32_t panel_count, clips;
    uint32_t phases[2], plane[2]; /* phases used, and the sides of one plane */
    const float *const *list;
    const uint32_t *lengths;
} Op;

typedef struct Kernels Kernels;

typedef struct {
    const Kernels *kernels;
    uint32_t op_count, in_elements, out_elements, reserved;
    float *input;
    const float *output;
    Op *ops;
} Plan;

struct Kernels {
    const char *name;
    void (*row)(float *, const float *, const Panel *, float, uint32_t);
    void (*block)(float *, const float *, const Panel *, const float *, uint32_t);
    float (*dot)(const float *, const Panel *);
    void (*dots)(float *, const float *, const Panel *);
    void (*block_dot)(float *, const float *, const Panel *);
    float (*sum)(const float *, uint32_t);
    void (*clip)(float *, float, float);
};

typedef float v4 __attribute__((vector_size(16)));
typedef float v4u __attribute__((vector_size(16), aligned(4), may_alias));

#define SPARSE_KERNELS
#define VEC v4
#define VECU v4u
#define LANES 4
#define NAME(x) x##_128
#define TARGET
#include "sparse.c"
#undef VEC
#undef VECU
#undef LANES
#undef NAME
#undef TARGET

#if defined(__aarch64__) || defined(__ARM_NEON)
#define NAME_128 "neon"
#elif defined(__SSE2__)
#define NAME_128 "sse2"
#else
#define NAME_128 "generic"
#endif

static const Kernels KERNELS_128 = {NAME_128, row_128, block_128, dot_128, dots_128,
                                    block_dot_128, sum_128, clip_128};

#if defined(__x86_64__)
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

#define VEC v8
#define VECU v8u
#define LANES 8
#define NAME(x) x##_256
#define TARGET __attribute__((target("avx2,fma")))
#include "sparse.c"
#undef VEC
#undef VECU
#undef LANES
#undef NAME
#undef TARGET

static const Kernels KERNELS_256 = {"avx2", row_256, block_256, dot_256, dots_256,
                                    block_dot_256, sum_256, clip_256};

static int has_avx2(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!(c & bit_FMA) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return 0; /* the system doesn't keep the wide registers */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
#endif

static const Kernels *best_kernels(void) {
#if defined(__x86_64__)
    if (has_avx2()) return &KERNELS_256;
#endif
    return &KERNELS_128;
}

/* Checking. */

enum {
    OK, CUT, MAGIC, VERSION, SIZE, TOO_MANY, SHAPE, ORDER, KIND, RANGE, GEOMETRY, COLUMNS, LIMITS,
    ARENA, HUGE, NAMES
};

static const char *const MESSAGES[] = {
    "", "the file is cut short", "it is no sparse program", "its version is unknown",
    "its length is not what it says", "it has too many values or operations",
    "a shape is impossible", "a value is read before it is written, or written twice",
    "an operation is unknown", "data lie outside the file", "shapes don't fit an operation",
    "a column index lies outside its row", "the bounds of an activation are no interval",
    "the arena is too small", "it needs more memory than any board has",
    "its names are impossible"};

typedef struct {
    const uint8_t *data;
    uint64_t size, floor;
    uint32_t values, ops, input, output;
    const Shape *shapes;
    const Record *records;
} File;

typedef struct {
    uint64_t arena_bytes, work, in_elements, out_elements;
    uint32_t op, stored;
} Info;

static uint32_t word(const uint8_t *data, uint32_t at) {
    uint32_t value;
    memcpy(&value, data + at, 4);
    return value;
}

static uint64_t elements(const Shape *s) { return (uint64_t)s->c * s->h * s->w; }

static int same(const Shape *a, const Shape *b) {
    return a->c == b->c && a->h == b->h && a->w == b->w;
}

static int in_file(const File *f, uint32_t offset, uint64_t count, uint64_t width) {
    if (width > 1 && offset % 4) return 0;
    return offset >= f->floor && count * width <= f->size && offset <= f->size - count * width;
}

static int read_head(File *f, const uint8_t *data, uint64_t size) {
    f->data = data;
    f->size = size;
    if (size < HEAD_BYTES) return CUT;
    if (memcmp(data, "FlatSprs", 8)) return MAGIC;
    if (word(data, 8) != 1) return VERSION;
    if (word(data, 12) != size) return SIZE;
    f->values = word(data, 16);
    f->ops = word(data, 20);
    f->input = word(data, 24);
    f->output = word(data, 28);
    if (!f->values || f->values > MOST || !f->ops || f->ops > MOST) return TOO_MANY;
    if (f->input >= f->values || f->output >= f->values) return ORDER;
    uint64_t tables = HEAD_BYTES + (uint64_t)VALUE_BYTES * f->values + (uint64_t)OP_BYTES * f->ops;
    uint32_t first = word(data, 32), second = word(data, 36);
    if (!first || !second || first > 1024 || second > 1024) return NAMES;
    f->floor = tables + first + second;
    if (f->floor > size) return CUT;
    f->shapes = (const Shape *)(const void *)(data + HEAD_BYTES);
    f->records = (const Record *)(const void *)(data + HEAD_BYTES + VALUE_BYTES * f->values);
    for (uint32_t i = 0; i < f->values; i++) {
        const Shape *s = f->shapes + i;
        if (s->rank != 1 && s->rank != 3) return SHAPE;
        if (s->rank == 1 && (s->h != 1 || s->w != 1)) return SHAPE;
        if (!s->c || !s->h || !s->w) return SHAPE;
        if (s->c > MOST_ELEMENTS || s->h > MOST_ELEMENTS || s->w > MOST_ELEMENTS) return SHAPE;
        if ((uint64_t)s->c * s->h > MOST_ELEMENTS || elements(s) > MOST_ELEMENTS) return SHAPE;
    }
    return OK;
}

static uint32_t axis(const Shape *s, int which) { return which ? s->w : s->h; }

static uint64_t reach(const Record *r, int which) {
    return (uint64_t)r->dilation[which] * (r->kernel[which] - 1) + 1;
}

/* How the rows of a layer's weights lie: rows and columns of one group. */
static void matrix(const Record *r, const Shape *in, const Shape *out, uint32_t *rows,
                   uint64_t *columns) {
    if (r->kind == FC) {
        *rows = out->c;
        *columns = elements(in);
    } else {
        *rows = out->c / r->groups;
        *columns = (uint64_t)(in->c / r->groups) * r->kernel[0] * r->kernel[1];
    }
}

static uint32_t groups_of(const Record *r) { return r->kind == FC ? 1 : r->groups; }

static int check_weights(const File *f, const Record *r, const Shape *in, const Shape *out,
                         Info *info) {
    uint32_t rows, groups = groups_of(r);
    uint64_t columns, seen = 0;
    matrix(r, in, out, &rows, &columns);
    if (columns > MOST_ELEMENTS) return GEOMETRY;
    if (r->bias && !in_file(f, r->bias, out->c, 4)) return RANGE;
    if (r->format > BLOCK) return KIND;
    info->stored += r->stored;
    uint64_t pixels = (uint64_t)out->h * out->w;
    if (r->format == DENSE) {
        if (r->stored != columns * out->c) return GEOMETRY;
        info->work += pixels * r->stored;
        return in_file(f, r->values, r->stored, 4) ? OK : RANGE;
    }
    uint32_t height = r->format == BLOCK ? 4 : 1;
    uint64_t panels = (uint64_t)groups * ((rows + height - 1) / height);
    if (!in_file(f, r->values, (uint64_t)r->stored * height, 4)) return RANGE;
    if (!in_file(f, r->index, r->stored, 1)) return RANGE;
    if (!in_file(f, r->counts, panels, 4)) return RANGE;
    const uint8_t *index = f->data + r->index;
    for (uint64_t panel = 0; panel < panels; panel++) {
        uint32_t count = word(f->data, r->counts + 4 * (uint32_t)panel);
        if (count > r->stored - seen) return COLUMNS;
        uint64_t column = 0;
        for (uint32_t j = 0; j < count; j++) column += (uint64_t)index[seen + j] + 1;
        if (column > columns) return COLUMNS;
        seen += count;
    }
    info->work += pixels * r->stored * height;
    return seen == r->stored ? OK : COLUMNS;
}

static int check_window(const Record *r, const Shape *in, const Shape *out) {
    for (int i = 0; i < 2; i++) {
        uint64_t size = axis(in, i), count = axis(out, i);
        if (!r->kernel[i] || !r->stride[i] || !r->dilation[i]) return GEOMETRY;
        if (r->kernel[i] > 65535 || r->stride[i] > 65535 || r->dilation[i] > 65535) return GEOMETRY;
        if (r->before[i] > 65535 || r->after[i] > 65535) return GEOMETRY;
        if (r->kind == CONV) {
            uint64_t padded = size + r->before[i] + r->after[i];
            if (padded < reach(r, i)) return GEOMETRY;
            if ((padded - reach(r, i)) / r->stride[i] + 1 != count) return GEOMETRY;
        } else {
            /* Every window holds an element of the input. */
            if (r->dilation[i] != 1 || r->before[i] >= r->kernel[i]) return GEOMETRY;
            if ((count - 1) * r->stride[i] >= size + r->before[i]) return GEOMETRY;
        }
    }
    return OK;
}

/* The planes that a convolution reads: phases used, sides of a plane, and all their floats. */
static uint64_t planes_of(const Record *r, const Shape *in, const Shape *out, uint32_t phases[2],
                          uint32_t plane[2]) {
    for (int i = 0; i < 2; i++) {
        uint64_t span = (uint64_t)(axis(out, i) - 1) * r->stride[i] + reach(r, i);
        uint64_t used = reach(r, i) < r->stride[i] ? reach(r, i) : r->stride[i];
        phases[i] = (uint32_t)used;
        plane[i] = (uint32_t)((span + r->stride[i] - 1) / r->stride[i]);
    }
    uint64_t total = (uint64_t)plane[0] * plane[1];
    uint64_t count = (uint64_t)phases[0] * phases[1];
    if (total > MOST_ELEMENTS || count > MOST_ELEMENTS || total * count > MOST_ELEMENTS)
        return (uint64_t)MOST_ELEMENTS + 1;
    return total * count > MOST_ELEMENTS / in->c ? (uint64_t)MOST_ELEMENTS + 1
                                                 : total * count * in->c;
}

static int is_plain(const Record *r, const Shape *in, const Shape *out) {
    if (r->kind == FC) return 1;
    return r->stride[0] == 1 && r->stride[1] == 1 && !r->before[0] && !r->before[1] &&
           out->h + reach(r, 0) - 1 == in->h && out->w + reach(r, 1) - 1 == in->w;
}

/* The length of an axis whose elements are repeated, or have zeros put between them. */
static uint64_t stretched(const Record *r, const Shape *in, int which) {
    if (!r->stride[which] || r->stride[which] > 65535) return 0;
    if (r->flags & REPEAT) return (uint64_t)axis(in, which) * r->stride[which];
    return (uint64_t)(axis(in, which) - 1) * r->stride[which] + 1;
}

static int check_op(const File *f, const Record *r, Info *info) {
    const Shape *in = f->shapes + r->input, *out = f->shapes + r->output;
    uint32_t phases[2], plane[2];
    int code;
    if (!(r->low <= r->high)) return LIMITS;
    switch (r->kind) {
    case CONV:
        if (!r->groups || in->c % r->groups || out->c % r->groups) return GEOMETRY;
        if ((code = check_window(r, in, out))) return code;
        if (!is_plain(r, in, out)) {
            uint64_t copied = planes_of(r, in, out, phases, plane);
            if (copied > MOST_ELEMENTS) return HUGE;
            info->work += copied;
        }
        return check_weights(f, r, in, out, info);
    case FC:
        if (out->h != 1 || out->w != 1) return GEOMETRY;
        return check_weights(f, r, in, out, info);
    case MAXPOOL:
    case AVGPOOL:
        if (in->c != out->c) return GEOMETRY;
        if ((code = check_window(r, in, out))) return code;
        {
            uint64_t high = r->kernel[0] < in->h ? r->kernel[0] : in->h;
            uint64_t wide = r->kernel[1] < in->w ? r->kernel[1] : in->w;
            info->work += elements(out) * high * wide;
        }
        return OK;
    case ADD:
        if (r->other >= f->values) return ORDER;
        info->work += elements(out);
        return same(in, out) && same(f->shapes + r->other, out) ? OK : GEOMETRY;
    case CONCAT: {
        uint64_t channels = 0;
        for (uint32_t i = 0; i < r->list_length; i++) {
            uint32_t part = word(f->data, r->list + 4 * i);
            if (part >= f->values) return ORDER;
            const Shape *s = f->shapes + part;
            if (s->h != out->h || s->w != out->w) return GEOMETRY;
            channels += s->c;
        }
        info->work += elements(out);
        return channels == out->c ? OK : GEOMETRY;
    }
    case STRETCH:
        info->work += elements(out);
        return in->c == out->c && stretched(r, in, 0) == out->h && stretched(r, in, 1) == out->w
                   ? OK
                   : GEOMETRY;
    case COPY:
        info->work += elements(out);
        return elements(in) == elements(out) ? OK : GEOMETRY;
    default:
        return KIND;
    }
}

/* When each value is read for the last time, and that it is written before. */
static int check_order(const File *f, uint16_t *last, uint32_t *at) {
    for (uint32_t v = 0; v < f->values; v++) last[v] = 0xffff;
    last[f->input] = 0;
    for (uint32_t i = 0; i < f->ops; i++) {
        const Record *r = f->records + i;
        uint32_t count = r->kind == CONCAT ? r->list_length : r->kind == ADD ? 2 : 1;
        *at = i;
        if (r->output >= f->values || r->input >= f->values) return ORDER;
        if (r->kind == CONCAT) {
            if (!count || count > MOST || !in_file(f, r->list, count, 4)) return RANGE;
            if (word(f->data, r->list) != r->input) return ORDER;
        }
        for (uint32_t k = 0; k < count; k++) {
            uint32_t v = r->kind == CONCAT ? word(f->data, r->list + 4 * k)
                         : k               ? r->other
                                           : r->input;
            if (v >= f->values || last[v] == 0xffff) return ORDER;
            last[v] = (uint16_t)i;
        }
        if (last[r->output] != 0xffff) return ORDER;
        last[r->output] = (uint16_t)i;
    }
    if (last[f->output] == 0xffff || f->output == f->input) return ORDER;
    last[f->output] = (uint16_t)f->ops;
    return OK;
}

/* Laying out the arena: with `base` NULL it is only measured. */

typedef struct {
    uint8_t *base;
    uint64_t used;
} Arena;

static void *take(Arena *arena, uint64_t bytes) {
    uint64_t at = arena->used;
    arena->used += (bytes + 63) & ~(uint64_t)63;
    return arena->base ? arena->base + at : NULL;
}

/* Values whose lives don't meet share a buffer: best fit, the largest free one grown otherwise. */
static uint32_t share_buffers(const File *f, const uint16_t *last, uint16_t *slot_of,
                              uint64_t *sizes) {
    uint16_t owner[MOST];
    uint32_t slots = 0;
    for (uint32_t step = 0; step <= f->ops; step++) {
        uint32_t value = step ? f->records[step - 1].output : f->input;
        uint64_t wanted = elements(f->shapes + value) + SLACK;
        uint32_t best = slots;
        for (uint32_t s = 0; s < slots; s++) {
            /* Operation step - 1 still reads what ends with it. */
            if (last[owner[s]] + 1u >= step) continue;
            int fits = sizes[s] >= wanted;
            if (best == slots || (fits ? sizes[best] < wanted || sizes[s] < sizes[best]
                                       : sizes[best] < wanted && sizes[s] > sizes[best]))
                best = s;
        }
        if (best == slots) sizes[slots++] = wanted;
        if (sizes[best] < wanted) sizes[best] = wanted;
        owner[best] = (uint16_t)value;
        slot_of[value] = (uint16_t)best;
    }
    return slots;
}

static void fill_offsets(const Record *r, const Shape *in, const Op *op, uint32_t *table) {
    uint32_t channels = r->kind == FC ? 0 : in->c / r->groups;
    uint32_t side = op->plane[0] * op->plane[1];
    for (uint32_t c = 0; c < channels; c++)
        for (uint32_t y = 0; y < r->kernel[0]; y++)
            for (uint32_t x = 0; x < r->kernel[1]; x++) {
                uint32_t down = y * r->dilation[0], right = x * r->dilation[1];
                uint32_t phase = down % r->stride[0] * op->phases[1] + right % r->stride[1];
                *table++ = (phase * in->c + c) * side +
                           down / r->stride[0] * op->plane[1] + right / r->stride[1];
            }
}

/* Expand relative indices into offsets, by a table where they are others than the columns. */
static void expand(const uint8_t *index, uint32_t count, const uint32_t *table, uint32_t *offsets) {
    uint32_t column = 0;
    for (uint32_t j = 0; j < count; j++) {
        column += (uint32_t)index[j] + 1;
        offsets[j] = table ? table[column - 1] : column - 1;
    }
}

/* Whether each output is made of all of the input (of its group), element by element. */
static int takes_all(const Record *r, const Shape *in, const Shape *out) {
    return r->kind == FC ||
           (is_plain(r, in, out) && r->kernel[0] == in->h && r->kernel[1] == in->w);
}

static void pack_rows(const float *values, uint64_t columns, float *packed) {
    for (uint64_t k = 0; k < columns; k++)
        for (uint32_t r = 0; r < 4; r++) packed[4 * k + r] = values[r * columns + k];
}

static void lay_weights(const File *f, const Record *r, Op *op, Arena *arena) {
    const Shape *in = &op->in, *out = &op->out;
    uint32_t rows, groups = groups_of(r);
    uint64_t columns;
    matrix(r, in, out, &rows, &columns);
    int dense = r->format == DENSE, one = out->h * out->w == 1, all = takes_all(r, in, out);
    uint32_t quads = r->format == BLOCK ? (rows + 3) / 4 : dense && (!one || all) ? rows / 4 : 0;
    uint32_t singles = r->format == BLOCK ? 0 : rows - 4 * quads;
    uint32_t count = groups * (quads + singles);
    Panel *panels = take(arena, (uint64_t)count * sizeof(Panel));
    uint32_t *table = all ? NULL : take(arena, columns * 4);
    uint32_t *offsets = dense ? table : take(arena, (uint64_t)r->stored * 4);
    float *packed = dense && !all ? take(arena, (uint64_t)groups * quads * columns * 16) : NULL;
    if (!arena->base) return;
    const float *values = (const float *)(const void *)(f->data + r->values);
    const uint8_t *index = f->data + r->index;
    const uint32_t *counts = (const uint32_t *)(const void *)(f->data + r->counts);
    uint32_t side = op->plane[0] * op->plane[1];
    if (table) fill_offsets(r, in, op, table);
    op->panels = panels;
    op->panel_count = count;
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t base = r->kind == FC ? 0 : g * (in->c / r->groups) * side;
        for (uint32_t k = 0; k < quads + singles; k++) {
            int quad = k < quads;
            uint32_t row = quad ? 4 * k : 4 * quads + (k - quads);
            uint32_t left = rows - row, stored = dense ? (uint32_t)columns : *counts++;
            *panels = (Panel){offsets, values, stored, base, g * rows + row,
                              quad && left > 4 ? 4 : quad ? left : 1, quad ? 4 : 1};
            if (dense) {
                const float *first = values + (uint64_t)(g * rows + row) * columns;
                panels->values = first;
                if (quad && !all) {
                    pack_rows(first, columns, packed);
                    panels->values = packed;
                    packed += 4 * columns;
                }
            } else {
                expand(index, stored, table, offsets);
                index += stored;
                offsets += stored;
                values += (uint64_t)stored * (quad ? 4 : 1);
            }
            panels++;
        }
    }
}

static void lay_out(const File *f, Arena *arena, const uint16_t *last) {
    uint16_t slot_of[MOST];
    uint64_t sizes[MOST], planes = 0;
    float *buffers[MOST];
    uint32_t slots = share_buffers(f, last, slot_of, sizes);
    Plan *plan = take(arena, sizeof(Plan));
    Op *ops = take(arena, (uint64_t)f->ops * sizeof(Op));
    for (uint32_t s = 0; s < slots; s++) buffers[s] = take(arena, sizes[s] * 4);
    for (uint32_t i = 0; i < f->ops; i++) {
        const Record *r = f->records + i;
        const Shape *in = f->shapes + r->input, *out = f->shapes + r->output;
        Op spare, *op = arena->base ? ops + i : &spare;
        memset(op, 0, sizeof *op);
        op->record = *r;
        op->in = *in;
        op->out = *out;
        op->clips = !(r->low < -3.4e38f && r->high > 3.4e38f);
        if (arena->base) {
            op->source = buffers[slot_of[r->input]];
            op->target = buffers[slot_of[r->output]];
            if (r->kind == ADD) op->other = buffers[slot_of[r->other]];
            if (r->bias) op->bias = (const float *)(const void *)(f->data + r->bias);
        }
        if (r->kind == CONV) {
            op->plane[0] = in->h;
            op->plane[1] = in->w;
            op->phases[0] = op->phases[1] = 1;
            if (!is_plain(r, in, out)) {
                uint64_t needed = planes_of(r, in, out, op->phases, op->plane);
                if (needed > planes) planes = needed;
            }
        }
        /* A pool joins the rows of its window there. */
        if ((r->kind == MAXPOOL || r->kind == AVGPOOL) && in->w > planes) planes = in->w;
        if (r->kind == CONV || r->kind == FC) lay_weights(f, r, op, arena);
        if (r->kind == CONCAT) {
            const float **list = take(arena, (uint64_t)r->list_length * sizeof *list);
            uint32_t *lengths = take(arena, (uint64_t)r->list_length * 4);
            for (uint32_t k = 0; arena->base && k < r->list_length; k++) {
                uint32_t part = word(f->data, r->list + 4 * k);
                list[k] = buffers[slot_of[part]];
                lengths[k] = (uint32_t)elements(f->shapes + part);
            }
            op->list = list;
            op->lengths = lengths;
        }
    }
    float *scratch = take(arena, planes ? (planes + SLACK) * 4 : 0);
    if (!arena->base) return;
    for (uint32_t i = 0; i < f->ops; i++)
        if (ops[i].record.kind != CONV || !is_plain(&ops[i].record, &ops[i].in, &ops[i].out))
            ops[i].planes = ops[i].record.kind == FC ? NULL : scratch;
    plan->kernels = best_kernels();
    plan->op_count = f->ops;
    plan->in_elements = (uint32_t)elements(f->shapes + f->input);
    plan->out_elements = (uint32_t)elements(f->shapes + f->output);
    plan->input = buffers[slot_of[f->input]];
    plan->output = buffers[slot_of[f->output]];
    plan->ops = ops;
}

/* Running. */

static void clip_all(float *restrict x, uint64_t n, const Op *op) {
    float low = op->record.low, high = op->record.high;
    if (!op->clips) return;
    for (uint64_t i = 0; i < n; i++) {
        float v = x[i];
        v = v < low ? low : v;
        x[i] = v > high ? high : v;
    }
}

static void copy(float *restrict to, const float *restrict from, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) to[i] = from[i];
}

/* Copy the input into planes, one for each phase and channel, zero where it is padding. */
static void fill_planes(const Op *op) {
    const Record *r = &op->record;
    const Shape *in = &op->in;
    uint32_t high = op->plane[0], wide = op->plane[1], step = r->stride[1];
    float *restrict to = op->planes;
    for (uint32_t py = 0; py < op->phases[0]; py++)
        for (uint32_t px = 0; px < op->phases[1]; px++) {
            /* Columns of the plane that lie in the input: from <= x < end. */
            uint32_t from = px >= r->before[1] ? 0 : (r->before[1] - px + step - 1) / step;
            uint64_t edge = (uint64_t)in->w + r->before[1];
            uint32_t end = edge <= px ? 0 : (uint32_t)((edge - px + step - 1) / step);
            if (end > wide) end = wide;
            if (from > end) from = end;
            for (uint32_t c = 0; c < in->c; c++)
                for (uint32_t y = 0; y < high; y++, to += wide) {
                    uint64_t row = (uint64_t)y * r->stride[0] + py;
                    if (row < r->before[0] || row - r->before[0] >= in->h) {
                        for (uint32_t x = 0; x < wide; x++) to[x] = 0;
                        continue;
                    }
                    const float *line = op->source;
                    line += ((uint64_t)c * in->h + row - r->before[0]) * in->w;
                    for (uint32_t x = 0; x < from; x++) to[x] = 0;
                    if (from < end) {
                        line += (uint64_t)from * step + px - r->before[1];
                        if (step == 1)
                            for (uint32_t x = from; x < end; x++) to[x] = line[x - from];
                        else
                            for (uint32_t x = from; x < end; x++)
                                to[x] = line[(uint64_t)(x - from) * step];
                    }
                    for (uint32_t x = end; x < wide; x++) to[x] = 0;
                }
        }
}

typedef struct {
    uint32_t from, to, length;
} Piece;

/* Where the outputs of one tile go: the pieces of it that lie in rows of the output. */
static uint32_t pieces_of(const Op *op, uint32_t start, uint32_t count, Piece *pieces) {
    uint32_t pitch = op->plane[1], width = op->out.w, n = 0;
    for (uint32_t i = 0; i < count;) {
        uint32_t y = (start + i) / pitch, x = (start + i) % pitch;
        uint32_t left = count - i;
        if (x < width) {
            uint32_t length = width - x < left ? width - x : left;
            pieces[n++] = (Piece){i, y * width + x, length};
            /* Without a margin one piece holds it all. */
            if (pitch == width) pieces[n - 1].length = length = left;
            i += length;
        } else {
            i += pitch - x < left ? pitch - x : left;
        }
    }
    return n;
}

static void put(float *restrict to, const float *restrict tile, const Piece *pieces, uint32_t n,
                uint32_t end) {
    for (uint32_t k = 0; k < n; k++) {
        const Piece p = pieces[k];
        uint32_t i = 0;
        /* What a last vector has too much falls on outputs that are yet to come. */
        if (p.to + ((p.length + 3) & ~3u) <= end)
            for (; i < p.length; i += 4)
                *(v4u *)(to + p.to + i) = *(const v4u *)(tile + p.from + i);
        else
            for (; i < p.length; i++) to[p.to + i] = tile[p.from + i];
    }
}

/* Compute one tile of a panel's rows; rows lie `pitch` apart. */
static void run_panel(const Panel *p, const Kernels *k, const Op *op, const float *at,
                      uint32_t count, float *to, uint32_t pitch) {
    float bias[4] = {0, 0, 0, 0};
    for (uint32_t r = 0; op->bias && r < p->live; r++) bias[r] = op->bias[p->row + r];
    if (p->wide == 4) {
        k->block(to, at, p, bias, pitch);
        if (count > TILE / 2) k->block(to + TILE / 2, at + TILE / 2, p, bias, pitch);
    } else {
        k->row(to, at, p, bias[0], count);
    }
    for (uint32_t r = 0; op->clips && r < p->live; r++)
        k->clip(to + (uint64_t)r * pitch, op->record.low, op->record.high);
}

static void run_tiles(const Op *op, const Kernels *k, const float *x) {
    uint32_t pitch = op->plane[1], pixels = op->out.h * op->out.w;
    uint32_t positions = (op->out.h - 1) * pitch + op->out.w;
    float tile[4][TILE + 8] = {{0}};
    Piece pieces[TILE];
    for (uint32_t start = 0; start < positions; start += TILE) {
        uint32_t count = positions - start < TILE ? positions - start : TILE;
        uint32_t n = pieces_of(op, start, count, pieces);
        for (const Panel *p = op->panels; p < op->panels + op->panel_count; p++) {
            const float *at = x + p->base + start;
            float *to = op->target + (uint64_t)p->row * pixels;
            if (n == 1 && pieces[0].length == TILE && p->live == p->wide) {
                /* All of it is output, and stays where it is computed. */
                run_panel(p, k, op, at, count, to + pieces[0].to, pixels);
                continue;
            }
            run_panel(p, k, op, at, count, tile[0], TILE + 8);
            for (uint32_t r = 0; r < p->live; r++)
                put(to + (uint64_t)r * pixels, tile[r], pieces, n, pixels);
        }
    }
}

static void run_vector(const Op *op, const Kernels *k, const float *x) {
    for (const Panel *p = op->panels; p < op->panels + op->panel_count; p++) {
        float sums[4];
        if (p->wide == 4 && !p->offsets)
            k->dots(sums, x + p->base, p);
        else if (p->wide == 4)
            k->block_dot(sums, x + p->base, p);
        else
            sums[0] = k->dot(x + p->base, p);
        for (uint32_t r = 0; r < p->live; r++)
            op->target[p->row + r] = sums[r] + (op->bias ? op->bias[p->row + r] : 0);
    }
    clip_all(op->target, op->out.c, op);
}

static void run_weights(const Op *op, const Kernels *k) {
    const float *x = op->source;
    if (op->planes) {
        fill_planes(op);
        x = op->planes;
    }
    if (op->out.h * op->out.w == 1)
        run_vector(op, k, x);
    else
        run_tiles(op, k, x);
}

/* Larger of two, where a value that is no number wins; or their sum. */
#define LARGER(a, b) (((b) > (a)) | ((b) != (b)) ? (b) : (a))
#define TOTAL(a, b) ((a) + (b))
#define JOIN(OF, to, from, n, step) \
    for (uint32_t i = 0; i < (n); i++) (to)[i] = OF((to)[i], (from)[(uint64_t)i * (step)])

static void join_rows(float *restrict to, const float *restrict from, uint32_t n, int larger) {
    if (larger)
        JOIN(LARGER, to, from, n, 1);
    else
        JOIN(TOTAL, to, from, n, 1);
}

/* Join every step-th column, with the usual steps known to the compiler. */
static void join_columns(float *restrict to, const float *restrict from, uint32_t n, uint32_t step,
                         int larger) {
    if (step == 1)
        join_rows(to, from, n, larger);
    else if (step == 2 && larger)
        JOIN(LARGER, to, from, n, 2);
    else if (step == 2)
        JOIN(TOTAL, to, from, n, 2);
    else if (larger)
        JOIN(LARGER, to, from, n, step);
    else
        JOIN(TOTAL, to, from, n, step);
}

typedef int32_t i4 __attribute__((vector_size(16)));

static v4 larger_of(v4 a, v4 b) {
    i4 second = (b > a) | (b != b);
    return (v4)((second & (i4)b) | (~second & (i4)a));
}

/* The usual pool: the largest of each two by two, of which `to` has `n` in a row. */
static void halve_rows(float *restrict to, const float *restrict upper,
                       const float *restrict lower, uint32_t n) {
    const i4 even = {0, 2, 4, 6}, odd = {1, 3, 5, 7};
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float *u = upper + 2 * (size_t)i, *l = lower + 2 * (size_t)i;
        v4 a = larger_of(*(const v4u *)u, *(const v4u *)l);
        v4 b = larger_of(*(const v4u *)(u + 4), *(const v4u *)(l + 4));
        *(v4u *)(to + i) = larger_of(__builtin_shuffle(a, b, even), __builtin_shuffle(a, b, odd));
    }
    for (; i < n; i++) {
        float a = LARGER(upper[2 * (size_t)i], lower[2 * (size_t)i]);
        float b = LARGER(upper[2 * (size_t)i + 1], lower[2 * (size_t)i + 1]);
        to[i] = LARGER(a, b);
    }
}

static int is_halving(const Op *op) {
    const Record *r = &op->record;
    for (int i = 0; i < 2; i++)
        if (r->kernel[i] != 2 || r->stride[i] != 2 || r->before[i] ||
            2 * (uint64_t)axis(&op->out, i) > axis(&op->in, i))
            return 0;
    return r->kind == MAXPOOL;
}

/* A row of outputs: the rows of the window are joined first, then its columns. */
static void pool_row(const Op *op, const float *plane, uint32_t row, float *to) {
    const Record *r = &op->record;
    uint32_t step = r->stride[1], width = op->out.w, wide = op->in.w, larger = r->kind == MAXPOOL;
    int64_t top = (int64_t)row * r->stride[0] - r->before[0];
    int64_t ends = top + r->kernel[0] < op->in.h ? top + r->kernel[0] : op->in.h;
    int64_t starts = top > 0 ? top : 0;
    float *joined = op->planes;
    copy(joined, plane + starts * wide, wide);
    for (int64_t y = starts + 1; y < ends; y++) join_rows(joined, plane + y * wide, wide, larger);
    for (uint32_t i = 0; i < width; i++) to[i] = larger ? -__builtin_inff() : 0;
    for (uint32_t kx = 0; kx < r->kernel[1]; kx++) {
        int64_t shift = (int64_t)kx - r->before[1]; /* output i reads column i * step + shift */
        int64_t room = (int64_t)wide - 1 - shift;
        if (room < 0) break;
        uint64_t most = (uint64_t)room / step + 1;
        uint32_t end = most < width ? (uint32_t)most : width;
        uint32_t from = shift < 0 ? (uint32_t)((-shift + step - 1) / step) : 0;
        if (from < end)
            join_columns(to + from, joined + ((int64_t)from * step + shift), end - from, step,
                         larger);
    }
    if (larger) return;
    int64_t low = ends - starts;
    if (r->flags & COUNT_PAD) {
        int64_t edge = (int64_t)op->in.h + r->after[0];
        low = (top + r->kernel[0] < edge ? top + r->kernel[0] : edge) - top;
    }
    for (uint32_t i = 0; i < width; i++) {
        int64_t left = (int64_t)i * step - r->before[1];
        int64_t right = left + r->kernel[1], edge = wide;
        if (r->flags & COUNT_PAD)
            edge += r->after[1];
        else if (left < 0)
            left = 0;
        to[i] /= (float)(low * ((right < edge ? right : edge) - left));
    }
}

static void run_pool(const Op *op, const Kernels *k) {
    const Record *r = &op->record;
    uint64_t plane = (uint64_t)op->in.h * op->in.w, pixels = (uint64_t)op->out.h * op->out.w;
    int halving = is_halving(op);
    int whole = r->kind == AVGPOOL && pixels == 1 && r->kernel[0] == op->in.h &&
                r->kernel[1] == op->in.w && !r->before[0] && !r->before[1];
    for (uint32_t c = 0; c < op->out.c; c++) {
        const float *from = op->source + c * plane;
        float *to = op->target + c * pixels;
        if (whole) {
            *to = k->sum(from, (uint32_t)plane) / (float)plane;
            continue;
        }
        for (uint32_t y = 0; y < op->out.h; y++, to += op->out.w)
            if (halving)
                halve_rows(to, from + 2 * (uint64_t)y * op->in.w,
                           from + (2 * (uint64_t)y + 1) * op->in.w, op->out.w);
            else
                pool_row(op, from, y, to);
    }
    clip_all(op->target, elements(&op->out), op);
}

static void run_add(const Op *op) {
    uint64_t n = elements(&op->out);
    float *restrict to = op->target;
    const float *a = op->source, *b = op->other;
    for (uint64_t i = 0; i < n; i++) to[i] = a[i] + b[i];
    clip_all(to, n, op);
}

static void run_stretch(const Op *op) {
    uint32_t down = op->record.stride[0], right = op->record.stride[1];
    int repeat = (op->record.flags & REPEAT) != 0;
    const float *from = op->source;
    float *to = op->target;
    for (uint64_t row = 0; row < (uint64_t)op->out.c * op->out.h; row++, to += op->out.w) {
        uint32_t y = (uint32_t)(row % op->out.h);
        const float *line = from + (row / op->out.h * op->in.h + y / down) * op->in.w;
        if (repeat) {
            for (uint32_t x = 0; x < op->out.w; x++) to[x] = line[x / right];
            continue;
        }
        for (uint32_t x = 0; x < op->out.w; x++) to[x] = 0;
        for (uint32_t x = 0; y % down == 0 && x < op->in.w; x++)
            to[(uint64_t)x * right] = line[x];
    }
    clip_all(op->target, elements(&op->out), op);
}

static void run_op(const Op *op, const Kernels *k) {
    switch (op->record.kind) {
    case CONV:
    case FC:
        run_weights(op, k);
        break;
    case MAXPOOL:
    case AVGPOOL:
        run_pool(op, k);
        break;
    case ADD:
        run_add(op);
        break;
    case STRETCH:
        run_stretch(op);
        break;
    case CONCAT: {
        float *to = op->target;
        for (uint32_t i = 0; i < op->record.list_length; to += op->lengths[i], i++)
            copy(to, op->list[i], op->lengths[i]);
        clip_all(op->target, elements(&op->out), op);
        break;
    }
    default:
        copy(op->target, op->source, elements(&op->out));
        clip_all(op->target, elements(&op->out), op);
    }
}

/* What is called from outside. */

static int checked(const uint8_t *data, uint64_t size, Info *info, File *f, uint16_t *last) {
    memset(info, 0, sizeof *info);
    int code = read_head(f, data, size);
    if (code || (code = check_order(f, last, &info->op))) return code;
    for (uint32_t i = 0; i < f->ops; i++) {
        info->op = i;
        if ((code = check_op(f, f->records + i, info))) return code;
    }
    Arena measured = {NULL, 0};
    lay_out(f, &measured, last);
    if (measured.used > MOST_ARENA) return HUGE;
    info->arena_bytes = measured.used;
    info->in_elements = elements(f->shapes + f->input);
    info->out_elements = elements(f->shapes + f->output);
    return OK;
}

/* Check a program in full. `data` lies at a multiple of 4. Returns 0, or a number for
 * `sparse_message`; then `info->op` tells which operation is at fault where one is. */
EXPORT int32_t sparse_check(const uint8_t *data, uint64_t size, Info *info) {
    uint16_t last[MOST];
    File f;
    return checked(data, size, info, &f, last);
}

/* Make the arena (at a multiple of 64) ready to run the program. `data` must stay as it is. */
EXPORT int32_t sparse_prepare(const uint8_t *data, uint64_t size, uint8_t *arena, uint64_t bytes) {
    uint16_t last[MOST];
    File f;
    Info info;
    int code = checked(data, size, &info, &f, last);
    if (code) return code;
    if (bytes < info.arena_bytes) return ARENA;
    Arena used = {arena, 0};
    lay_out(&f, &used, last);
    return OK;
}

/* Run a prepared program on `batch` inputs that lie one behind the other. */
EXPORT void sparse_run(const uint8_t *arena, const float *input, float *output, uint64_t batch) {
    const Plan *plan = (const Plan *)(const void *)arena;
    for (uint64_t n = 0; n < batch; n++) {
        copy(plan->input, input + n * plan->in_elements, plan->in_elements);
        for (uint32_t i = 0; i < plan->op_count; i++) run_op(plan->ops + i, plan->kernels);
        copy(output + n * plan->out_elements, plan->output, plan->out_elements);
    }
}

/* Run one operation of a prepared program on what lies in the arena: for timing layers. */
EXPORT void sparse_run_op(const uint8_t *arena, uint32_t op) {
    const Plan *plan = (const Plan *)(const void *)arena;
    if (op < plan->op_count) run_op(plan->ops + op, plan->kernels);
}

EXPORT const char *sparse_message(int32_t code) {
    return code >= 0 && code < (int32_t)(sizeof MESSAGES / sizeof *MESSAGES) ? MESSAGES[code] : "";
}

EXPORT const char *sparse_kernels(void) { return best_kernels()->name; }

EXPORT int32_t sparse_version(void) { return 1; }

#else /* SPARSE_KERNELS: in terms of VEC, VECU, LANES, NAME and TARGET */

#define WIDTH(n) ((n) / LANES)
#define LOAD(p) (*(const VECU *)(const void *)(p))
#define STORE(p, v) (*(VECU *)(void *)(p) = (v))

/* One row over T vectors of neighbouring outputs. */
#define ROW(T)                                                                          \
    do {                                                                                \
        VEC sums[T];                                                                    \
        _Pragma("GCC unroll 8") for (int i = 0; i < (T); i++) sums[i] = (VEC){0} + bias; \
        for (uint32_t j = 0; j < n; j++) {                                              \
            const float *at = x + offsets[j];                                           \
            const float w = values[j];                                                  \
            _Pragma("GCC unroll 8") for (int i = 0; i < (T); i++)                       \
                sums[i] += w * LOAD(at + i * LANES);                                    \
        }                                                                               \
        _Pragma("GCC unroll 8") for (int i = 0; i < (T); i++)                           \
            STORE(tile + i * LANES, sums[i]);                                           \
    } while (0)

TARGET static void NAME(row)(float *tile, const float *x, const Panel *p, float bias,
                             uint32_t count) {
    const uint32_t *restrict offsets = p->offsets;
    const float *restrict values = p->values;
    const uint32_t n = p->count;
    if (count > 16)
        ROW(WIDTH(32));
    else if (count > 8)
        ROW(WIDTH(16));
    else
        ROW(WIDTH(8));
}

#undef ROW

/* Four rows over 16 neighbouring outputs. */
TARGET static void NAME(block)(float *tile, const float *x, const Panel *p, const float *bias,
                               uint32_t pitch) {
    const uint32_t *restrict offsets = p->offsets;
    const float *restrict values = p->values;
    VEC sums[4][WIDTH(16)];
    _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)
        _Pragma("GCC unroll 8") for (int i = 0; i < WIDTH(16); i++)
            sums[r][i] = (VEC){0} + bias[r];
    for (const uint32_t *end = offsets + p->count; offsets < end; offsets++, values += 4) {
        const float *at = x + *offsets;
#if LANES == 4
        const v4 w = *(const v4u *)(const void *)values;
#else
        const float *w = values;
#endif
        VEC read[WIDTH(16)];
        _Pragma("GCC unroll 8") for (int i = 0; i < WIDTH(16); i++)
            read[i] = LOAD(at + i * LANES);
        _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)
            _Pragma("GCC unroll 8") for (int i = 0; i < WIDTH(16); i++)
                sums[r][i] += w[r] * read[i];
    }
    _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)
        _Pragma("GCC unroll 8") for (int i = 0; i < WIDTH(16); i++)
            STORE(tile + r * pitch + i * LANES, sums[r][i]);
}

/* One row with one output: several sums at once, since each addition waits for the last. */
TARGET static float NAME(dot)(const float *restrict x, const Panel *p) {
    const uint32_t *restrict offsets = p->offsets;
    const float *restrict values = p->values;
    size_t n = p->count;
    float a = 0, b = 0, c = 0, d = 0;
    if (!offsets) {
        VEC sums[4] = {{0}, {0}, {0}, {0}};
        for (; n >= 4 * LANES; n -= 4 * LANES, values += 4 * LANES, x += 4 * LANES)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
                sums[i] += LOAD(values + i * LANES) * LOAD(x + i * LANES);
        for (; n >= LANES; n -= LANES, values += LANES, x += LANES)
            sums[0] += LOAD(values) * LOAD(x);
        sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int i = 0; i < LANES; i++) a += sums[0][i];
        for (; n; n--) a += *values++ * *x++;
        return a;
    }
    for (; n >= 4; n -= 4, values += 4, offsets += 4) {
        a += values[0] * x[offsets[0]];
        b += values[1] * x[offsets[1]];
        c += values[2] * x[offsets[2]];
        d += values[3] * x[offsets[3]];
    }
    if (n > 0) a += values[0] * x[offsets[0]];
    if (n > 1) b += values[1] * x[offsets[1]];
    if (n > 2) c += values[2] * x[offsets[2]];
    return (a + b) + (c + d);
}

/* Four rows of contiguous weights with one output each. */
TARGET static void NAME(dots)(float *out, const float *restrict x, const Panel *p) {
    const float *restrict values = p->values;
    const size_t n = p->count;
    VEC sums[4][2] = {{{0}, {0}}, {{0}, {0}}, {{0}, {0}}, {{0}, {0}}};
    size_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        const VEC first = LOAD(x + j), second = LOAD(x + j + LANES);
        _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
            sums[r][0] += LOAD(values + r * n + j) * first;
            sums[r][1] += LOAD(values + r * n + j + LANES) * second;
        }
    }
    _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
        const VEC both = sums[r][0] + sums[r][1];
        float total = 0;
        for (int i = 0; i < LANES; i++) total += both[i];
        for (size_t k = j; k < n; k++) total += values[r * n + k] * x[k];
        out[r] = total;
    }
}

/* Four rows with one output each. */
TARGET static void NAME(block_dot)(float *out, const float *restrict x, const Panel *p) {
    const uint32_t *restrict offsets = p->offsets;
    const float *restrict values = p->values;
    size_t n = p->count;
    v4 sums[4] = {{0}, {0}, {0}, {0}};
    for (; n >= 4; n -= 4, values += 16, offsets += 4)
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
            sums[i] += x[offsets[i]] * *(const v4u *)(const void *)(values + 4 * i);
    for (; n; n--, values += 4, offsets++)
        sums[0] += x[*offsets] * *(const v4u *)(const void *)values;
    *(v4u *)(void *)out = (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

TARGET static float NAME(sum)(const float *x, uint32_t n) {
    VEC sums[2] = {{0}, {0}};
    uint32_t i = 0;
    float total = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sums[0] += LOAD(x + i);
        sums[1] += LOAD(x + i + LANES);
    }
    sums[0] += sums[1];
    for (int k = 0; k < LANES; k++) total += sums[0][k];
    for (; i < n; i++) total += x[i];
    return total;
}

/* Hold a tile between two bounds; what is no number stays so. */
TARGET static void NAME(clip)(float *restrict tile, float low, float high) {
    for (int i = 0; i < (int)TILE; i++) {
        float v = tile[i];
        v = v < low ? low : v;
        tile[i] = v > high ? high : v;
    }
}

#undef WIDTH
#undef LOAD
#undef STORE
#endif
