/* The "context" coder of coded weights: adaptive binary arithmetic coding of integer matrices.
 *
 * The model and its every constant are described in docs/coded-weights.md; `context.py` is the
 * same in Python and gives the same bytes. Only integers are used, so that each machine gives the
 * same bytes. Nothing is allocated: the caller gives the memory. Each index that a file can
 * influence is bounded before it is used.
 *
 * Freestanding C99: the compiler's own headers only.
 */

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#define TAIL 2560       /* ends of the logistic domain: 10 nats in 1/256 */
#define STEP 32         /* between two nodes of the table */
#define NODES 81
#define COUNTERS 9216
#define INPUTS 16
#define SELECTIONS 256
#define LIMIT 4000      /* a counter's memory, in decisions */
#define TRUST 6         /* and how many of them the next matrix believes */
#define MOST_BITS 24    /* of a magnitude */

static const uint16_t LOWER[NODES] = {
    32768, 30723, 28693, 26695, 24743, 22849, 21025, 19282, 17625, 16062, 14595, 13226,
    11955, 10782, 9702, 8714, 7812, 6992, 6249, 5577, 4971, 4427, 3938, 3500,
    3108, 2758, 2446, 2168, 1921, 1701, 1506, 1333, 1179, 1042, 922, 815,
    720, 636, 562, 497, 439, 387, 342, 302, 267, 236, 208, 184,
    162, 143, 126, 111, 98, 87, 77, 68, 60, 53, 47, 41,
    36, 32, 28, 25, 22, 19, 17, 15, 13, 12, 10, 9,
    8, 7, 6, 6, 5, 4, 4, 3, 3,
};

typedef struct {
    uint16_t p; /* of a one, in 1/65536 */
    uint16_t n; /* decisions seen, up to LIMIT */
} Counter;

typedef struct {
    /* The range and where its bytes go to or come from. */
    uint32_t low, high, value;
    int32_t decoding;
    const uint8_t *source;
    uint8_t *sink;
    int64_t at, room;
    int32_t overrun;
    /* One decision. */
    int32_t counters, inputs;
    int32_t index[INPUTS], x[INPUTS];
    int32_t first, second;
    /* What was learnt. */
    int32_t weights[SELECTIONS][INPUTS];
    uint16_t age[SELECTIONS];
    Counter table[COUNTERS];
    int16_t stretch[4096];
} State;

static int32_t squash(int32_t s) {
    int32_t negative = s < 0, size = negative ? -s : s, k, f, p;
    if (size >= TAIL) {
        size = TAIL - 1;
    }
    /* LOWER[k] is the value at -k * STEP. */
    k = size / STEP;
    f = size % STEP;
    p = (LOWER[k] * (STEP - f) + LOWER[k + 1] * f) / STEP;
    return negative ? p : 65536 - p;
}

/* How fast weights learn: 0.048 at first, then 0.0023, in 1/65536. */
static int32_t rate(int32_t age) { return 150 + 3000 * 64 / (64 + age); }

static void reset(State *s) {
    int32_t i, j, p;
    s->low = 0;
    s->high = 0xffffffffu;
    s->value = 0;
    s->at = 0;
    s->overrun = 0;
    for (i = 0; i < COUNTERS; i++) {
        s->table[i].p = 32768;
        s->table[i].n = 0;
    }
    for (i = 0; i < SELECTIONS; i++) {
        s->age[i] = 0;
        for (j = 0; j < INPUTS; j++) {
            s->weights[i][j] = 16384;
        }
    }
    /* The inverse of squash, at the middle of each sixteenth of its values. */
    p = -TAIL;
    for (i = 0; i < 4096; i++) {
        while (p < TAIL && squash(p) < 16 * i + 8) {
            p++;
        }
        s->stretch[i] = (int16_t)p;
    }
}

static uint32_t next_byte(State *s) {
    if (s->at < s->room) {
        return s->source[s->at++];
    }
    /* Zeros follow the end; a sound file needs four of them at most. */
    s->overrun++;
    return 0;
}

static void put_byte(State *s, uint32_t byte) {
    if (s->at < s->room) {
        s->sink[s->at++] = (uint8_t)byte;
    } else {
        s->overrun++;
    }
}

static int32_t clamp(int64_t value, int32_t end) {
    return value > end ? end : value < -end ? -end : (int32_t)value;
}

static int32_t arithmetic(State *s, int32_t bit, int32_t p) {
    uint32_t range = s->high - s->low;
    uint32_t middle =
        s->low + (range >> 16) * (uint32_t)p + (((range & 0xffffu) * (uint32_t)p) >> 16);
    if (s->decoding) {
        bit = s->value <= middle;
    }
    if (bit) {
        s->high = middle;
    } else {
        s->low = middle + 1;
    }
    while (((s->low ^ s->high) & 0xff000000u) == 0) {
        if (s->decoding) {
            s->value = (s->value << 8) | next_byte(s);
        } else {
            put_byte(s, s->high >> 24);
        }
        s->low <<= 8;
        s->high = (s->high << 8) | 0xffu;
    }
    return bit;
}

/* Begin a decision: counters and direct predictions are added, then `decide` codes it. */
static void begin(State *s, int32_t first, int32_t second) {
    s->counters = 0;
    s->inputs = 0;
    s->first = first;
    s->second = second;
}

static void counter(State *s, int32_t index) {
    Counter *c = &s->table[index];
    int32_t i = s->inputs++;
    s->index[i] = index;
    s->counters = s->inputs;
    /* What was seen never or once says little. */
    s->x[i] = s->stretch[c->p >> 4] * c->n / (c->n + 1);
}

static void direct(State *s, int32_t logit) { s->x[s->inputs++] = logit; }

static int32_t decide(State *s, int32_t bit) {
    int32_t *first = s->weights[s->first], *second = s->weights[s->second];
    int64_t a = 0, b = 0;
    int32_t i, pa, pb, p, ea, eb, ra, rb;
    for (i = 0; i < s->inputs; i++) {
        a += (int64_t)first[i] * s->x[i];
        b += (int64_t)second[i] * s->x[i];
    }
    a = clamp(a >> 16, TAIL - 1);
    b = clamp(b >> 16, TAIL - 1);
    pa = squash((int32_t)a);
    pb = squash((int32_t)b);
    p = squash((int32_t)((a + b) >> 1));
    bit = arithmetic(s, bit, p < 1 ? 1 : p > 65535 ? 65535 : p);
    ea = (bit << 16) - pa;
    eb = (bit << 16) - pb;
    ra = rate(s->age[s->first]);
    rb = rate(s->age[s->second]);
    for (i = 0; i < s->inputs; i++) {
        first[i] += (int32_t)(((int64_t)s->x[i] * ea * ra) >> 24);
        second[i] += (int32_t)(((int64_t)s->x[i] * eb * rb) >> 24);
    }
    if (s->age[s->first] < 65535) {
        s->age[s->first]++;
    }
    if (s->second != s->first && s->age[s->second] < 65535) {
        s->age[s->second]++;
    }
    for (i = 0; i < s->counters; i++) {
        Counter *c = &s->table[s->index[i]];
        int32_t error = (bit << 16) - bit - c->p;
        c->p = (uint16_t)(c->p + error * 2 / (2 * c->n + 3));
        if (c->n < LIMIT) {
            c->n++;
        }
    }
    return bit;
}

static int32_t bits_of(int32_t value) {
    uint32_t size = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    int32_t n = 0;
    while (size) {
        n++;
        size >>= 1;
    }
    return n;
}

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

/* The logit of ones among n, with half a one and half a zero more (Krichevsky and Trofimov). */
static int32_t logit(const State *s, int64_t ones, int64_t n) {
    int64_t p = ((2 * ones + 1) * 4096) / (2 * n + 2);
    return s->stretch[p > 4095 ? 4095 : p];
}

/* The same in 24 steps. */
static int32_t grade(int32_t logit) { return (logit + TAIL) / 214; }

/* Sums over a matrix's columns so far, and its last two rows. */
typedef struct {
    int32_t *nonzeros, *lengths, *signs, *up, *above;
} Columns;

enum {
    AT_ALL = 0,
    AT_LEFT = AT_ALL + 1,
    AT_UP = AT_LEFT + 64,
    AT_NEAR = AT_UP + 32,
    AT_COLUMN = AT_NEAR + 64,
    AT_ROW = AT_COLUMN + 96,
    AT_BOTH = AT_ROW + 120,
    AT_PLACE = AT_BOTH + 576,
    AT_GROUP = AT_PLACE + 128,
    AT_BESIDE = AT_GROUP + 192,
    AT_SIGN = AT_BESIDE + 576,
    AT_LENGTH = AT_SIGN + 256,
    AT_MANTISSA = AT_LENGTH + 1600,
    AT_REST = AT_MANTISSA + 4608,
    AT_END = AT_REST + (MOST_BITS + 1) * MOST_BITS
};

typedef char room_for_all_counters[AT_END <= COUNTERS ? 1 : -1];

static int32_t sign_of(int32_t value) { return value > 0 ? 2 : value < 0 ? 0 : 1; }

static int32_t around(int32_t sum) { return sum > 3 ? 6 : sum < -3 ? 0 : sum + 3; }

static int32_t magnitude(State *s, int32_t value, int32_t sign, int32_t bound, int32_t left,
                         int32_t up, int32_t column, int32_t row, int32_t last) {
    int32_t most = bits_of(bound), length = bits_of(value), n = 1, found, i;
    int32_t size = value < 0 ? -value : value;
    while (n < most) {
        begin(s, 64 + n, 96 + least(left, 7) + 8 * least(n - 1, 7));
        i = AT_LENGTH + (n - 1) * 64;
        counter(s, i + sign);
        counter(s, i + 2 + least(left, 3) * 4 + least(up, 3));
        counter(s, i + 18 + least(column, 7) * 2 + sign);
        counter(s, i + 34 + least(row, 7) * 2 + sign);
        counter(s, i + 50 + least(last, 6) * 2 + sign);
        direct(s, 256);
        if (!decide(s, length > n)) {
            break;
        }
        n++;
    }
    found = 1;
    for (i = n - 2; i >= 0; i--) {
        int32_t bit = (size >> i) & 1;
        if (found < 256) {
            begin(s, 160 + least(n, 15), 176 + least(found, 31));
            counter(s, AT_MANTISSA + (found * 9 + least(n, 8)) * 2 + sign);
            counter(s, AT_MANTISSA + (found * 9 + 0) * 2 + sign);
            direct(s, 256);
        } else {
            begin(s, 208, 209);
            counter(s, AT_REST + n * MOST_BITS + i);
        }
        found = found * 2 + decide(s, bit);
        if (found > bound) {
            /* Only a damaged file says so; the caller sees it. */
            return bound + 1;
        }
    }
    return found;
}

EXPORT int64_t coder_bytes(void) { return (int64_t)sizeof(State); }

EXPORT void coder_start(State *s, int32_t decoding, uint8_t *data, int64_t room) {
    int32_t i;
    reset(s);
    s->decoding = decoding;
    s->source = data;
    s->sink = data;
    s->room = room;
    if (decoding) {
        for (i = 0; i < 4; i++) {
            s->value = (s->value << 8) | next_byte(s);
        }
        s->overrun = 0;
    }
}

EXPORT int32_t coder_matrix(State *s, int32_t *symbols, int64_t rows, int64_t columns, int32_t low,
                            int32_t high, int64_t period, int32_t *scratch) {
    Columns k;
    int64_t r, c, i;
    if (rows < 0 || columns < 0 || period < 0 || low > 0 || high < 0 ||
        bits_of(low) > MOST_BITS || bits_of(high) > MOST_BITS) {
        return -3;
    }
    k.nonzeros = scratch;
    k.lengths = scratch + columns;
    k.signs = scratch + 2 * columns;
    k.up = scratch + 3 * columns;
    k.above = scratch + 4 * columns;
    for (i = 0; i < 5 * columns; i++) {
        scratch[i] = 0;
    }
    for (i = 0; i < COUNTERS; i++) {
        if (s->table[i].n > TRUST) {
            s->table[i].n = TRUST;
        }
    }
    for (r = 0; r < rows; r++) {
        int32_t *row = symbols + r * columns;
        int64_t ones = 0, lengths = 0, in_group = 0, seen = 0, start = 0;
        int32_t signs = 0, recent = 0, last = 1, begun = (int32_t)(r < 7 ? r : 7);
        for (c = 0; c < columns; c++) {
            int32_t left = c > 0 ? row[c - 1] : 0, second = c > 1 ? row[c - 2] : 0;
            int32_t third = c > 2 ? row[c - 3] : 0;
            int32_t back = period > 0 && c >= period ? row[c - period] : 0;
            int32_t up = k.up[c], above = k.above[c];
            int32_t corner = c > 0 ? k.up[c - 1] : 0, next = c + 1 < columns ? k.up[c + 1] : 0;
            int64_t near = 0, of = 0;
            int32_t by_column, by_row, beside, group, value, sign, size, popular;
            if ((c & 1023) == 0 && s->decoding && s->overrun > 8) {
                /* Zeros behind a stream's end could tell millions of symbols more. */
                return -2;
            }
            if (period > 0 && c - start >= period) {
                start = c;
                in_group = 0;
                seen = 0;
            }
            if (c > 0) { near += k.nonzeros[c - 1]; of += r; }
            if (c + 1 < columns) { near += k.nonzeros[c + 1]; of += r; }
            if (period > 0) {
                if (c >= period) { near += k.nonzeros[c - period]; of += r; }
                if (c + period < columns) { near += k.nonzeros[c + period]; of += r; }
            }
            by_column = logit(s, k.nonzeros[c], r);
            by_row = logit(s, ones, c);
            beside = logit(s, near, of);
            group = logit(s, in_group, seen);
            popular = 0;
            for (i = 0; i < 16 && popular < 4; i++) {
                popular += (recent >> i) & 1;
            }
            value = s->decoding ? 0 : row[c];
            begin(s, begun, 8 + grade(by_row));
            counter(s, AT_ALL);
            counter(s, AT_LEFT + least(bits_of(left), 3) * 16 + least(bits_of(second), 3) * 4 +
                           least(bits_of(third), 3));
            counter(s, AT_UP + (least(bits_of(up), 3) * 4 + least(bits_of(above), 3)) * 2 +
                           (left != 0));
            counter(s, AT_NEAR + (left != 0) + 2 * (up != 0) + 4 * (corner != 0) +
                           8 * (next != 0) + 16 * (back != 0) + 32 * (above != 0));
            counter(s, AT_COLUMN + grade(by_column) * 4 + least(begun, 3));
            counter(s, AT_ROW + grade(by_row) * 5 + popular);
            counter(s, AT_BOTH + grade(by_column) * 24 + grade(by_row));
            counter(s, AT_PLACE + (int32_t)((c - start) < 63 ? c - start : 63) * 2 + (back != 0));
            counter(s, AT_GROUP + grade(group) * 8 + grade(by_column) / 3);
            counter(s, AT_BESIDE + grade(beside) * 24 + grade(by_column));
            direct(s, by_column);
            direct(s, by_row);
            direct(s, beside);
            direct(s, group);
            direct(s, 256);
            recent <<= 1;
            seen++;
            if (!decide(s, value != 0)) {
                row[c] = 0;
                k.above[c] = up;
                k.up[c] = 0;
                continue;
            }
            if (low == 0) {
                sign = 1;
            } else if (high == 0) {
                sign = 0;
            } else {
                begin(s, 40, 41 + around(k.signs[c]));
                counter(s, AT_SIGN);
                counter(s, AT_SIGN + 1 + sign_of(left) * 9 + sign_of(up) * 3 + sign_of(back));
                counter(s, AT_SIGN + 28 + around(k.signs[c]) * 7 + around(signs));
                counter(s, AT_SIGN + 77 + (int32_t)((c - start) < 63 ? c - start : 63) * 2);
                direct(s, 256);
                sign = decide(s, value > 0);
            }
            size = magnitude(s, value, sign, sign ? high : -low, bits_of(left), bits_of(up),
                             k.nonzeros[c] ? (int32_t)((2 * (int64_t)k.lengths[c] + k.nonzeros[c] / 2) / k.nonzeros[c]) : 0,
                             ones ? (int32_t)((2 * lengths + ones / 2) / ones) : 0, last);
            if (size > (sign ? high : -low)) {
                return -1;
            }
            value = sign ? size : -size;
            row[c] = value;
            last = bits_of(value);
            recent |= 1;
            ones++;
            in_group++;
            lengths += last;
            signs += sign ? 1 : -1;
            k.nonzeros[c]++;
            k.lengths[c] += last;
            k.signs[c] += sign ? 1 : -1;
            k.above[c] = up;
            k.up[c] = value;
        }
    }
    return s->decoding && s->overrun > 8 ? -2 : 0;
}

EXPORT int64_t coder_finish(State *s) {
    int32_t kept;
    if (s->decoding) {
        return s->overrun > 4 ? -1 : s->at;
    }
    /* As few bytes as say which number; the reader goes on with zeros. */
    for (kept = 0; kept < 4; kept++) {
        uint32_t mask = kept == 0 ? 0xffffffffu : 0xffffffffu >> (8 * kept);
        uint32_t value = (s->low + mask) & ~mask;
        if (value >= s->low && value <= s->high) {
            int32_t i;
            for (i = 0; i < kept; i++) {
                put_byte(s, value >> 24);
                value <<= 8;
            }
            break;
        }
    }
    if (kept == 4) {
        int32_t i;
        uint32_t value = s->low;
        for (i = 0; i < 4; i++) {
            put_byte(s, value >> 24);
            value <<= 8;
        }
    }
    return s->overrun ? -1 : s->at;
}

/* Canonical Huffman codes: `lengths` gives the bits of each symbol's code, 0 for none. Returns the
 * bytes that `count` symbols took, or -1 where the bits are no code or end too early. */
EXPORT int64_t coder_huffman(const uint8_t *data, int64_t bytes, const uint8_t *lengths,
                             int32_t alphabet, int32_t *symbols, int64_t count, int32_t *order) {
    uint32_t of_length[33] = {0};
    int64_t at = 0, i;
    int32_t length, filled = 0;
    for (i = 0; i < alphabet; i++) {
        if (lengths[i] > 32) {
            return -1;
        }
        of_length[lengths[i]]++;
    }
    for (length = 1; length <= 32; length++) {
        for (i = 0; i < alphabet; i++) {
            if (lengths[i] == length) {
                order[filled++] = (int32_t)i;
            }
        }
    }
    for (i = 0; i < count; i++) {
        uint64_t code = 0, first = 0;
        int64_t before = 0;
        for (length = 1; length <= 32; length++) {
            if (at >= 8 * bytes) {
                return -1;
            }
            code |= (data[at >> 3] >> (7 - (at & 7))) & 1;
            at++;
            if (code < first + of_length[length]) {
                symbols[i] = order[before + (int64_t)(code - first)];
                break;
            }
            before += of_length[length];
            first = (first + of_length[length]) << 1;
            code <<= 1;
        }
        if (length > 32) {
            return -1;
        }
    }
    return (at + 7) >> 3;
}

/* Puts each symbol's level, a word of four bytes; -1 where there is no such level. */
EXPORT int32_t coder_levels(const int32_t *symbols, int64_t count, const uint32_t *levels,
                            int32_t zero, int32_t size, uint32_t *out) {
    int64_t i;
    for (i = 0; i < count; i++) {
        int64_t index = (int64_t)symbols[i] + zero;
        if (index < 0 || index >= size) {
            return -1;
        }
        out[i] = levels[index];
    }
    return 0;
}
