/*
 * A small model of two data caches: write-back, write-allocate, least recently used goes first.
 *
 * It knows lines, not data. An L1 miss looks in L2; an L2 miss reads a line from DRAM. A dirty line
 * that leaves L1 is written to L2, whole, so that L2 need not read it from DRAM first; a dirty line
 * that leaves L2 is written to DRAM. The levels neither include nor exclude each other. Not
 * modelled: instruction fetches, prefetching, address translation, other cores.
 */
#ifndef FLATSAT_CACHE_H
#define FLATSAT_CACHE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Each set holds its lines as (line number << 1 | dirty), the most recently used one first. */
struct cache {
    uint64_t *entries;
    uint64_t set_mask;
    unsigned ways;
    size_t bytes; /* of the entries */
};

struct memory {
    struct cache l1, l2;
    unsigned line_shift;
    uint64_t l1_misses, l1_writebacks, l2_misses, l2_writebacks;
};

#define CACHE_EMPTY UINT64_MAX

static inline bool power_of_two(uint64_t value)
{
    return value && !(value & (value - 1));
}

/* Make an empty cache; false if its sets would not be a power of two, or memory is short. */
static inline bool cache_make(struct cache *cache, uint64_t size, uint64_t ways, uint64_t line)
{
    if (!ways || ways > size / line || size % (ways * line)
        || !power_of_two(size / (ways * line))) {
        return false;
    }
    cache->ways = (unsigned)ways;
    cache->set_mask = size / (ways * line) - 1;
    cache->bytes = size / line * sizeof *cache->entries;
    cache->entries = malloc(cache->bytes);
    if (cache->entries) {
        memset(cache->entries, 0xff, cache->bytes);
    }
    return cache->entries;
}

/* Make both caches; sizes in bytes. */
static inline bool memory_make(struct memory *memory, uint64_t l1_size, uint64_t l1_ways,
                               uint64_t l2_size, uint64_t l2_ways, uint64_t line)
{
    memset(memory, 0, sizeof *memory);
    if (!power_of_two(line) || line < 8) {
        return false;
    }
    memory->line_shift = (unsigned)__builtin_ctzll(line);
    return cache_make(&memory->l1, l1_size, l1_ways, line)
           && cache_make(&memory->l2, l2_size, l2_ways, line);
}

/* Forget every line; nothing is written back. */
static inline void memory_clear(struct memory *memory)
{
    memset(memory->l1.entries, 0xff, memory->l1.bytes);
    memset(memory->l2.entries, 0xff, memory->l2.bytes);
}

static inline bool is_dirty(uint64_t entry)
{
    return entry != CACHE_EMPTY && (entry & 1);
}

/* Use a line: true if it was there, else it takes the place of `evicted` (or of CACHE_EMPTY). */
static inline bool cache_use(struct cache *cache, uint64_t line, bool write, uint64_t *evicted)
{
    uint64_t *set = cache->entries + (line & cache->set_mask) * cache->ways;
    uint64_t entry = line << 1 | write;
    unsigned way = 0;
    bool hit = true;

    while (set[way] >> 1 != line) {
        if (++way == cache->ways) {
            hit = false;
            *evicted = set[--way];
            break;
        }
    }
    if (hit) {
        entry |= set[way] & 1;
    }
    for (; way; way--) {
        set[way] = set[way - 1];
    }
    set[0] = entry;
    return hit;
}

static inline void memory_line(struct memory *memory, uint64_t line, bool write)
{
    uint64_t old, older;

    if (cache_use(&memory->l1, line, write, &old)) {
        return;
    }
    memory->l1_misses++;
    if (is_dirty(old)) {
        memory->l1_writebacks++;
        if (!cache_use(&memory->l2, old >> 1, true, &older) && is_dirty(older)) {
            memory->l2_writebacks++;
        }
    }
    if (!cache_use(&memory->l2, line, false, &older)) {
        memory->l2_misses++;
        if (is_dirty(older)) {
            memory->l2_writebacks++;
        }
    }
}

/* One access of the processor; it may straddle two lines. */
static inline void memory_access(struct memory *memory, uint64_t address, uint64_t size, bool write)
{
    uint64_t first = address >> memory->line_shift;
    uint64_t last = (address + size - 1) >> memory->line_shift;

    memory_line(memory, first, write);
    if (last != first) {
        memory_line(memory, last, write);
    }
}

#endif
