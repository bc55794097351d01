/*
 * Counts what one emulated AArch64 core does inside windows that the guest opens and closes.
 *
 * A window is opened by the instruction `hint #0x50` and closed by `hint #0x51`, both of which do
 * nothing on hardware, executed by a user program. Counted are instructions, loads, stores, their
 * bytes, and misses of a modelled data cache (cache.h), of user code only: code at addresses with
 * the top bits set is the kernel's. The cache sees only what happens inside windows and is kept from
 * one to the next, as for inferences that follow each other closely, until `hint #0x52` empties it:
 * it knows virtual addresses, which mean something else in the next program.
 *
 * Arguments: log=FILE (appended to), line=, l1_size=, l1_ways=, l2_size=, l2_ways= (bytes).
 * The log has one JSON object a line, flushed at once: a header when the emulator starts, then one
 * for each window, numbered from 1. `fault` is null, or tells why a window counts for nothing:
 * "reopened" (a second opening before its end), "not-open" (an end without an opening), "unclosed".
 *
 * Context switches: `switches` counts them inside the window. `away` is how many of `instructions`
 * belonged to another task than the one that opened the window; both are known from the kernel's
 * cpu_switch_to, which loads the next task's link register and then sets sp_el0 from x1. `tracked`
 * is false as long as no switch was seen, so that nothing is known of other tasks.
 *
 * Limits: a load or store of 16 bytes counts as two of eight, since QEMU makes two. `dc zva`, which
 * zeroes a block of 64 bytes, counts as eight stores; QEMU doesn't tell where, so that the cache
 * does not see it. The plugin interface is version 1, that of QEMU 7.2 (a QEMU that speaks another
 * one refuses to load this); Debian ships no header, so what is used of it is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cache.h"

#define EXPORT __attribute__((visibility("default")))

/* QEMU's plugin interface, version 1, as far as it is used. */
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

typedef struct qemu_info_t {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;

enum { CB_NO_REGS = 0 };
enum { INLINE_ADD_U64 = 0 };
enum { MEM_RW = 3 }; /* QEMU 7.2 takes reads alone for writes, so it is always both. */

typedef void (*tb_callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*exec_callback)(unsigned int vcpu, void *data);
typedef void (*mem_callback)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address,
                             void *data);
typedef void (*exit_callback)(qemu_plugin_id_t id, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_callback callback);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int op,
                                                void *counter, uint64_t value);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, exec_callback callback,
                                            int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, mem_callback callback,
                                      int flags, int directions, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, exit_callback callback, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                               char **argv);

/* Instruction words. */
#define HINT_BEGIN 0xd5032a1fu    /* hint #0x50 */
#define HINT_END 0xd5032a3fu      /* hint #0x51 */
#define HINT_CLEAR 0xd5032a5fu    /* hint #0x52 */
#define DC_ZVA 0xd50b7420u        /* dc zva, x0; the register is in the lowest five bits */
#define LOAD_NEXT 0xf940011eu     /* ldr x30, [x8]: cpu_switch_to reads the next task's */
#define SWITCH_TASK 0xd5184101u   /* msr sp_el0, x1: cpu_switch_to makes it the current one */
#define LOADS_AND_STORES_MASK 0x0a000000u
#define LOADS_AND_STORES 0x08000000u /* this group of the instruction set, and no other */
#define ZVA_BYTES 64

static FILE *log_file;
static struct memory memory;
static uint64_t number;            /* of the last window */
static uint64_t user_instructions; /* since the start; the translated code itself adds to it */

static bool is_open;
static uint64_t opened_at; /* user_instructions when the window was opened */
static uint64_t loads, load_bytes, stores, store_bytes;
static struct memory before; /* its counts when the window was opened */

static uint64_t next_task, task, owner; /* names of tasks: addresses inside their structures */
static uint64_t switches, away, since;
static bool tracked;

/* Write the window as one line and close it. */
static void report(const char *fault)
{
    if (task != owner) {
        away += user_instructions - since;
    }
    fprintf(log_file,
            "{\"window\": %" PRIu64 ", \"fault\": %s%s%s, \"instructions\": %" PRIu64
            ", \"loads\": %" PRIu64 ", \"load_bytes\": %" PRIu64 ", \"stores\": %" PRIu64
            ", \"store_bytes\": %" PRIu64 ", \"l1_misses\": %" PRIu64
            ", \"l1_writebacks\": %" PRIu64 ", \"l2_misses\": %" PRIu64
            ", \"l2_writebacks\": %" PRIu64 ", \"switches\": %" PRIu64 ", \"away\": %" PRIu64
            ", \"tracked\": %s}\n",
            ++number, fault ? "\"" : "", fault ? fault : "null", fault ? "\"" : "",
            user_instructions - opened_at, loads, load_bytes, stores, store_bytes,
            memory.l1_misses - before.l1_misses, memory.l1_writebacks - before.l1_writebacks,
            memory.l2_misses - before.l2_misses, memory.l2_writebacks - before.l2_writebacks,
            switches, away, tracked ? "true" : "false");
    fflush(log_file);
    is_open = false;
}

static void start_counting(void)
{
    opened_at = since = user_instructions;
    loads = load_bytes = stores = store_bytes = 0;
    before = memory;
    owner = task;
    switches = away = 0;
}

static void on_begin(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    if (is_open) {
        report("reopened");
    }
    start_counting();
    is_open = true;
}

static void on_end(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    if (is_open) {
        report(NULL);
    } else {
        start_counting();
        report("not-open");
    }
}

static void on_clear(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    memory_clear(&memory);
}

static void on_access(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    uint64_t size;
    bool write;

    (void)vcpu, (void)data;
    if (!is_open) {
        return;
    }
    size = UINT64_C(1) << qemu_plugin_mem_size_shift(info);
    write = qemu_plugin_mem_is_store(info);
    if (write) {
        stores++;
        store_bytes += size;
    } else {
        loads++;
        load_bytes += size;
    }
    memory_access(&memory, address, size, write);
}

static void on_zero(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    stores += ZVA_BYTES / 8;
    store_bytes += ZVA_BYTES;
}

static void on_load_next(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address,
                         void *data)
{
    (void)vcpu, (void)info, (void)data;
    next_task = address;
}

static void on_switch(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    if (task != owner) {
        away += user_instructions - since;
    }
    since = user_instructions;
    task = next_task;
    switches++;
    tracked = true;
}

static uint32_t word_of(const struct qemu_plugin_insn *insn)
{
    uint32_t word;

    memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
    return word;
}

static void instrument_kernel(struct qemu_plugin_insn *insn)
{
    uint32_t word = word_of(insn);

    if (word == LOAD_NEXT) {
        qemu_plugin_register_vcpu_mem_cb(insn, on_load_next, CB_NO_REGS, MEM_RW, NULL);
    } else if (word == SWITCH_TASK) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_switch, CB_NO_REGS, NULL);
    }
}

/* Watch an instruction if it matters; false for one that only counts. */
static bool instrument_user(struct qemu_plugin_insn *insn, uint32_t word)
{
    if (word == HINT_BEGIN) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_begin, CB_NO_REGS, NULL);
    } else if (word == HINT_END) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, CB_NO_REGS, NULL);
    } else if (word == HINT_CLEAR) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_clear, CB_NO_REGS, NULL);
    } else if ((word & ~0x1fu) == DC_ZVA) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_zero, CB_NO_REGS, NULL);
    } else if ((word & LOADS_AND_STORES_MASK) == LOADS_AND_STORES) {
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, CB_NO_REGS, MEM_RW, NULL);
    } else {
        return false;
    }
    return true;
}

static void count_run(struct qemu_plugin_insn *first, uint64_t length)
{
    if (length) {
        qemu_plugin_register_vcpu_insn_exec_inline(first, INLINE_ADD_U64, &user_instructions,
                                                   length);
    }
}

/*
 * Instructions count in runs, all at the first of a run. A run ends with an access, where a page
 * fault may cut the block, so that only what was executed counts (one that faults counts again when
 * it is repeated). The hints stand alone; QEMU counts after it calls back, so that of a window's
 * two the opening one counts.
 */
static void instrument_user_block(struct qemu_plugin_tb *tb, size_t n)
{
    struct qemu_plugin_insn *first = NULL;
    uint64_t length = 0;

    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t word = word_of(insn);

        if (word == HINT_BEGIN || word == HINT_END) {
            count_run(first, length);
            length = 0;
        }
        first = length++ ? first : insn;
        if (instrument_user(insn, word)) {
            count_run(first, length);
            length = 0;
        }
    }
    count_run(first, length);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);

    (void)id;
    if (qemu_plugin_tb_vaddr(tb) >> 63) {
        for (size_t i = 0; i < n; i++) {
            instrument_kernel(qemu_plugin_tb_get_insn(tb, i));
        }
    } else {
        instrument_user_block(tb, n);
    }
}

static void on_quit(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    if (is_open) {
        report("unclosed");
    }
}

static bool read_number(const char *argument, const char *name, uint64_t *value)
{
    size_t length = strlen(name);
    char *end;

    if (strncmp(argument, name, length) || argument[length] != '=') {
        return false;
    }
    *value = strtoull(argument + length + 1, &end, 10);
    return *end == '\0' && end != argument + length + 1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    uint64_t line = 64, l1_size = 32 << 10, l1_ways = 2, l2_size = 1 << 20, l2_ways = 16;
    const char *log = NULL;

    if (strcmp(info->target_name, "aarch64")
        || (info->system_emulation && info->system.max_vcpus > 1)) {
        fprintf(stderr, "flatsat events: counts one AArch64 core only\n");
        return -1;
    }
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "log=", 4)) {
            log = argv[i] + 4;
        } else if (!read_number(argv[i], "line", &line) && !read_number(argv[i], "l1_size", &l1_size)
                   && !read_number(argv[i], "l1_ways", &l1_ways)
                   && !read_number(argv[i], "l2_size", &l2_size)
                   && !read_number(argv[i], "l2_ways", &l2_ways)) {
            fprintf(stderr, "flatsat events: can't read the argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!memory_make(&memory, l1_size, l1_ways, l2_size, l2_ways, line)) {
        fprintf(stderr, "flatsat events: line and number of sets must be powers of two\n");
        return -1;
    }
    log_file = log ? fopen(log, "ae") : NULL;
    if (!log_file) {
        fprintf(stderr, "flatsat events: can't write the log %s\n", log ? log : "(none given)");
        return -1;
    }
    fprintf(log_file,
            "{\"events\": 1, \"line\": %" PRIu64 ", \"l1_size\": %" PRIu64 ", \"l1_ways\": %" PRIu64
            ", \"l2_size\": %" PRIu64 ", \"l2_ways\": %" PRIu64 "}\n",
            line, l1_size, l1_ways, l2_size, l2_ways);
    fflush(log_file);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_quit, NULL);
    return 0;
}
