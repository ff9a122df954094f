#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ptx.h"

/* Shared and local memory as seen through generic addresses: outside what a host process can map. */
#define SHARED_WINDOW (1ull << 56)
#define LOCAL_WINDOW (2ull << 56)
#define WINDOW_MASK (~0ull << 56)

struct thread {
    uint64_t *registers;
    unsigned char *local;
    uint32_t pc, tid[3];
    bool finished;
};
struct block {
    const struct ptx_launch *launch;
    uint32_t index[3], shared_bytes;
    unsigned char *shared;
    enum ptx_result result;
};

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t special(const struct block *block, const struct thread *t, uint32_t which)
{
    const uint32_t *n = block->launch->block;
    uint32_t linear = t->tid[0] + n[0] * (t->tid[1] + n[1] * t->tid[2]);

    switch ((enum ptx_special)which) {
    case SR_TID_X:
    case SR_TID_Y:
    case SR_TID_Z: return t->tid[which - SR_TID_X];
    case SR_NTID_X:
    case SR_NTID_Y:
    case SR_NTID_Z: return n[which - SR_NTID_X];
    case SR_CTAID_X:
    case SR_CTAID_Y:
    case SR_CTAID_Z: return block->index[which - SR_CTAID_X];
    case SR_NCTAID_X:
    case SR_NCTAID_Y:
    case SR_NCTAID_Z: return block->launch->grid[which - SR_NCTAID_X];
    case SR_LANEID: return linear % 32;
    case SR_WARPID: return linear / 32;
    case SR_SMID: return 0;
    case SR_CLOCK: return (uint32_t)nanoseconds(CLOCK_MONOTONIC); /* the emulated GPU runs at 1 GHz */
    case SR_CLOCK64: return nanoseconds(CLOCK_MONOTONIC);
    case SR_GLOBALTIMER: return nanoseconds(CLOCK_REALTIME);
    }
    return 0;
}

static inline uint64_t read_raw(const struct block *block, const struct thread *t, const struct ptx_operand *o)
{
    switch (o->kind) {
    case OPERAND_REGISTER: return t->registers[o->index];
    case OPERAND_IMMEDIATE: return o->value;
    case OPERAND_SPECIAL: return special(block, t, o->index);
    case OPERAND_SHARED:
    case OPERAND_LOCAL:
    case OPERAND_PARAM: return o->index;
    case OPERAND_GLOBAL: return o->value;
    case OPERAND_NONE: break;
    }
    return 0;
}

static inline float as_f32(uint64_t raw)
{
    float f;
    uint32_t u = (uint32_t)raw;
    memcpy(&f, &u, 4);
    return f;
}
static inline double as_f64(uint64_t raw)
{
    double d;
    memcpy(&d, &raw, 8);
    return d;
}
static inline uint64_t from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline uint64_t from_f64(double d)
{
    uint64_t u;
    memcpy(&u, &d, 8);
    return u;
}

static inline bool is_signed(enum ptx_type t) { return t >= T_S8 && t <= T_S64; }
static inline bool is_float(enum ptx_type t) { return t == T_F32 || t == T_F64; }

/* Cut to the type's width, with its sign. */
static inline uint64_t fit(uint64_t raw, enum ptx_type type)
{
    switch (type) {
    case T_B8:
    case T_U8: return (uint8_t)raw;
    case T_B16:
    case T_U16: return (uint16_t)raw;
    case T_B32:
    case T_U32:
    case T_F32: return (uint32_t)raw;
    case T_S8: return (uint64_t)(int64_t)(int8_t)raw;
    case T_S16: return (uint64_t)(int64_t)(int16_t)raw;
    case T_S32: return (uint64_t)(int64_t)(int32_t)raw;
    case T_PRED: return raw & 1;
    default: return raw;
    }
}
static inline double real(uint64_t raw, enum ptx_type type)
{
    return type == T_F32 ? (double)as_f32(raw) : as_f64(raw);
}

static float saturated(float f) { return isnan(f) ? 0.0f : f < 0.0f ? 0.0f : f > 1.0f ? 1.0f : f; }

static uint64_t float_arithmetic(const struct ptx_instruction *in, uint64_t a, uint64_t b, uint64_t c)
{
    if (in->type == T_F32) {
        float x = as_f32(a), y = as_f32(b), z = as_f32(c), r = 0;
        switch (in->op) {
        case OP_ADD: r = x + y; break;
        case OP_SUB: r = x - y; break;
        case OP_MUL: r = x * y; break;
        case OP_DIV: r = x / y; break;
        case OP_FMA:
        case OP_MAD: r = fmaf(x, y, z); break;
        case OP_MIN: r = fminf(x, y); break;
        case OP_MAX: r = fmaxf(x, y); break;
        case OP_ABS: r = fabsf(x); break;
        case OP_NEG: r = -x; break;
        case OP_SQRT: r = sqrtf(x); break;
        case OP_RSQRT: r = 1.0f / sqrtf(x); break;
        case OP_RCP: r = 1.0f / x; break;
        case OP_EX2: r = exp2f(x); break;
        case OP_LG2: r = log2f(x); break;
        case OP_SIN: r = sinf(x); break;
        case OP_COS: r = cosf(x); break;
        default: break;
        }
        return from_f32(in->saturate ? saturated(r) : r);
    }
    double x = as_f64(a), y = as_f64(b), z = as_f64(c);
    switch (in->op) {
    case OP_ADD: return from_f64(x + y);
    case OP_SUB: return from_f64(x - y);
    case OP_MUL: return from_f64(x * y);
    case OP_DIV: return from_f64(x / y);
    case OP_FMA:
    case OP_MAD: return from_f64(fma(x, y, z));
    case OP_MIN: return from_f64(fmin(x, y));
    case OP_MAX: return from_f64(fmax(x, y));
    case OP_ABS: return from_f64(fabs(x));
    case OP_NEG: return from_f64(-x);
    case OP_SQRT: return from_f64(sqrt(x));
    case OP_RSQRT: return from_f64(1.0 / sqrt(x));
    case OP_RCP: return from_f64(1.0 / x);
    default: return 0;
    }
}

static uint64_t multiply(const struct ptx_instruction *in, uint64_t a, uint64_t b)
{
    unsigned bits = (unsigned)ptx_type_size(in->type) * 8;
    __int128 product = is_signed(in->type) ? (__int128)(int64_t)a * (int64_t)b : (__int128)((unsigned __int128)a * b);

    return in->width == WIDTH_HI ? (uint64_t)((unsigned __int128)product >> bits) : (uint64_t)product;
}

static uint64_t shift(const struct ptx_instruction *in, uint64_t a, uint64_t b)
{
    unsigned bits = (unsigned)ptx_type_size(in->type) * 8;
    uint32_t by = (uint32_t)b;

    if (in->op == OP_SHL)
        return by >= bits ? 0 : a << by;
    if (is_signed(in->type))
        return (uint64_t)((int64_t)a >> (by >= bits ? bits - 1 : by));
    return by >= bits ? 0 : a >> by;
}

static uint64_t integer_arithmetic(const struct ptx_instruction *in, uint64_t a, uint64_t b, uint64_t c)
{
    bool sign = is_signed(in->type);
    enum ptx_type wide = in->width == WIDTH_WIDE ? T_B64 : in->type;
    uint64_t r = 0;

    switch (in->op) {
    case OP_ADD: r = a + b; break;
    case OP_SUB: r = a - b; break;
    case OP_MUL: r = multiply(in, a, b); break;
    case OP_MAD: r = multiply(in, a, b) + c; break;
    /* division by zero gives all ones on the GPU; the most negative number by -1 is itself */
    case OP_DIV:
        r = fit(b, in->type) == 0 ? ~0ull
            : sign                ? ((int64_t)b == -1 ? -a : (uint64_t)((int64_t)a / (int64_t)b))
                                  : a / b;
        break;
    case OP_REM:
        r = fit(b, in->type) == 0 ? a : sign ? ((int64_t)b == -1 ? 0 : (uint64_t)((int64_t)a % (int64_t)b)) : a % b;
        break;
    case OP_MIN: r = sign ? ((int64_t)a < (int64_t)b ? a : b) : (a < b ? a : b); break;
    case OP_MAX: r = sign ? ((int64_t)a > (int64_t)b ? a : b) : (a > b ? a : b); break;
    case OP_ABS: r = (int64_t)a < 0 ? -a : a; break;
    case OP_NEG: r = -a; break;
    case OP_NOT: r = ~a; break;
    case OP_AND: r = a & b; break;
    case OP_OR: r = a | b; break;
    case OP_XOR: r = a ^ b; break;
    case OP_SHL:
    case OP_SHR: r = shift(in, a, b); break;
    default: break;
    }
    return fit(r, wide);
}

static bool compare(const struct ptx_instruction *in, uint64_t a, uint64_t b)
{
    if (is_float(in->type)) {
        double x = real(a, in->type), y = real(b, in->type);
        bool unordered = isnan(x) || isnan(y);
        switch (in->compare) {
        case CMP_EQ: return x == y;
        case CMP_NE: return !unordered && x != y;
        case CMP_LT: return x < y;
        case CMP_LE: return x <= y;
        case CMP_GT: return x > y;
        case CMP_GE: return x >= y;
        case CMP_EQU: return unordered || x == y;
        case CMP_NEU: return unordered || x != y;
        case CMP_LTU: return unordered || x < y;
        case CMP_LEU: return unordered || x <= y;
        case CMP_GTU: return unordered || x > y;
        case CMP_GEU: return unordered || x >= y;
        case CMP_NUM: return !unordered;
        case CMP_NAN: return unordered;
        case CMP_NONE: return false;
        }
    }
    bool less = is_signed(in->type) ? (int64_t)a < (int64_t)b : a < b;
    switch (in->compare) {
    case CMP_EQ: return a == b;
    case CMP_NE: return a != b;
    case CMP_LT: return less;
    case CMP_LE: return less || a == b;
    case CMP_GT: return !less && a != b;
    case CMP_GE: return !less;
    default: return false;
    }
}

static double rounded(double x, enum ptx_round round)
{
    switch (round) {
    case ROUND_NEAREST: return nearbyint(x);
    case ROUND_ZERO: return trunc(x);
    case ROUND_DOWN: return floor(x);
    case ROUND_UP: return ceil(x);
    case ROUND_NONE: break;
    }
    return x;
}

/* To an integer as the GPU does it: NaN is 0, what does not fit is the nearest that does. */
static uint64_t to_integer(double x, enum ptx_type type)
{
    unsigned bits = (unsigned)ptx_type_size(type) * 8;
    double low = is_signed(type) ? -ldexp(1, (int)bits - 1) : 0, high = ldexp(1, (int)bits - (is_signed(type) ? 1 : 0));

    if (isnan(x))
        return 0;
    if (x <= low)
        return is_signed(type) ? (uint64_t)1 << (bits - 1) : 0;
    if (x >= high)
        return is_signed(type) ? ((uint64_t)1 << (bits - 1)) - 1 : bits == 64 ? ~0ull : ((uint64_t)1 << bits) - 1;
    return is_signed(type) ? (uint64_t)(int64_t)x : (uint64_t)x;
}

static uint64_t convert(const struct ptx_instruction *in, uint64_t raw)
{
    enum ptx_type to = in->type, from = in->source_type;

    if (is_float(from)) {
        double x = real(raw, from);
        if (!is_float(to))
            return fit(to_integer(rounded(x, in->integer_round ? in->round : ROUND_ZERO), to), to);
        if (in->integer_round)
            x = rounded(x, in->round);
        if (in->saturate)
            x = (double)saturated((float)x);
        return to == T_F32 ? from_f32((float)x) : from_f64(x);
    }
    raw = fit(raw, from);
    if (to == T_F32)
        return from_f32(is_signed(from) ? (float)(int64_t)raw : (float)raw);
    if (to == T_F64)
        return from_f64(is_signed(from) ? (double)(int64_t)raw : (double)raw);
    if (in->saturate) {
        double x = is_signed(from) ? (double)(int64_t)raw : (double)raw;
        return fit(to_integer(x, to), to);
    }
    return fit(raw, to);
}

static void *locate(struct block *block, struct thread *t, const struct ptx_instruction *in, uint64_t size)
{
    const struct ptx_kernel *kernel = block->launch->kernel;
    uint64_t at = read_raw(block, t, &in->a) + (uint64_t)in->a.offset;
    enum ptx_space space = in->space;

    if (in->a.kind == OPERAND_SHARED && space == SPACE_GENERIC)
        space = SPACE_SHARED;
    if (in->a.kind == OPERAND_LOCAL && space == SPACE_GENERIC)
        space = SPACE_LOCAL;
    if (space == SPACE_GENERIC && (at & WINDOW_MASK) == SHARED_WINDOW) {
        space = SPACE_SHARED;
        at &= ~WINDOW_MASK;
    } else if (space == SPACE_GENERIC && (at & WINDOW_MASK) == LOCAL_WINDOW) {
        space = SPACE_LOCAL;
        at &= ~WINDOW_MASK;
    }
    if (at % ptx_type_size(in->type)) {
        block->result = PTX_MISALIGNED;
        return NULL;
    }
    switch (space) {
    case SPACE_SHARED:
        at = (uint32_t)at;
        if (at + size <= block->shared_bytes)
            return block->shared + at;
        break;
    case SPACE_LOCAL:
        if (at <= kernel->local_bytes && at + size <= kernel->local_bytes)
            return t->local + at;
        break;
    case SPACE_PARAM:
        if (at <= kernel->parameter_bytes && at + size <= kernel->parameter_bytes)
            return (void *)(block->launch->parameters + at);
        break;
    case SPACE_GENERIC:
    case SPACE_GLOBAL:
    case SPACE_CONST:
        if (block->launch->readable(block->launch->context, at, size))
            return (void *)(uintptr_t)at;
        break;
    }
    block->result = PTX_ILLEGAL_ADDRESS;
    return NULL;
}

static bool load_or_store(struct block *block, struct thread *t, const struct ptx_instruction *in)
{
    size_t element = ptx_type_size(in->type);
    unsigned char *at = locate(block, t, in, element * in->vector);

    if (!at)
        return false;
    for (uint32_t i = 0; i < in->vector; i++, at += element) {
        if (in->op == OP_LD) {
            uint64_t raw = 0;
            memcpy(&raw, at, element);
            t->registers[in->lanes[i].index] = fit(raw, in->type);
        } else {
            uint64_t raw = read_raw(block, t, &in->lanes[i]);
            memcpy(at, &raw, element);
        }
    }
    return true;
}

/* Blocks run one after the other on one engine, so a plain read and write is atomic here. */
static bool atomic(struct block *block, struct thread *t, const struct ptx_instruction *in)
{
    size_t element = ptx_type_size(in->type);
    unsigned char *at = locate(block, t, in, element);
    uint64_t old = 0, b = fit(read_raw(block, t, &in->b), in->type), new = b;
    struct ptx_instruction same = *in;

    if (!at)
        return false;
    memcpy(&old, at, element);
    old = fit(old, in->type);
    static const enum ptx_op ops[] = {[ATOM_ADD] = OP_ADD, [ATOM_MIN] = OP_MIN, [ATOM_MAX] = OP_MAX,
                                      [ATOM_AND] = OP_AND, [ATOM_OR] = OP_OR,   [ATOM_XOR] = OP_XOR};
    if (in->atomic == ATOM_CAS) {
        new = old == b ? read_raw(block, t, &in->c) : old;
    } else if (in->atomic != ATOM_EXCH) {
        same.op = ops[in->atomic];
        new = is_float(in->type) ? float_arithmetic(&same, old, b, 0) : integer_arithmetic(&same, old, b, 0);
    }
    memcpy(at, &new, element);
    if (in->d.kind == OPERAND_REGISTER)
        t->registers[in->d.index] = old;
    return true;
}

static void move(struct block *block, struct thread *t, const struct ptx_instruction *in)
{
    unsigned bits = (unsigned)ptx_type_size(in->type) * 8 / in->vector;
    uint64_t raw = read_raw(block, t, &in->a);

    if (in->vector == 1) {
        t->registers[in->d.index] = fit(raw, in->type);
    } else if (in->d.kind == OPERAND_NONE) { /* unpack */
        for (uint32_t i = 0; i < in->vector; i++)
            t->registers[in->lanes[i].index] = raw >> (bits * i) & (((uint64_t)1 << bits) - 1);
    } else { /* pack */
        raw = 0;
        for (uint32_t i = 0; i < in->vector; i++)
            raw |= (read_raw(block, t, &in->lanes[i]) & (((uint64_t)1 << bits) - 1)) << (bits * i);
        t->registers[in->d.index] = raw;
    }
}

static uint64_t generic_address(const struct ptx_instruction *in, uint64_t raw, bool from_generic)
{
    uint64_t window = in->space == SPACE_SHARED ? SHARED_WINDOW : in->space == SPACE_LOCAL ? LOCAL_WINDOW : 0;
    return from_generic ? (window ? raw & ~WINDOW_MASK : raw) : raw | window;
}

static void set_predicate(struct block *block, struct thread *t, const struct ptx_instruction *in, uint64_t a,
                          uint64_t b)
{
    bool r = compare(in, a, b), r2 = !r;

    if (in->combines) {
        bool c = (read_raw(block, t, &in->c) & 1) != in->negate_c;
        r2 = in->combine == OP_AND ? r2 && c : in->combine == OP_OR ? r2 || c : r2 != c;
        r = in->combine == OP_AND ? r && c : in->combine == OP_OR ? r || c : r != c;
    }
    t->registers[in->d.index] = r;
    if (in->d2.kind == OPERAND_REGISTER)
        t->registers[in->d2.index] = r2;
}

static uint64_t arithmetic(struct block *block, struct thread *t, const struct ptx_instruction *in)
{
    uint64_t a = fit(read_raw(block, t, &in->a), in->type), b = read_raw(block, t, &in->b),
             c = read_raw(block, t, &in->c);

    if (is_float(in->type))
        return float_arithmetic(in, a, b, c);
    /* a shift's amount is a u32 whatever is shifted */
    return integer_arithmetic(in, a, in->op == OP_SHL || in->op == OP_SHR ? b : fit(b, in->type), c);
}

/* Runs a thread until it waits at a barrier (true) or is done or broken (false). */
static bool run_thread(struct block *block, struct thread *t)
{
    for (;;) {
        const struct ptx_instruction *in = &block->launch->kernel->code[t->pc++];
        if (in->guarded && (t->registers[in->guard] & 1) == in->guard_negated)
            continue;
        switch (in->op) {
        case OP_BAR: return true;
        case OP_EXIT: t->finished = true; return false;
        case OP_TRAP: block->result = PTX_TRAP; return false;
        case OP_BRA: t->pc = in->target; break;
        case OP_FENCE: break;
        case OP_NANOSLEEP: {
            uint64_t ns = read_raw(block, t, &in->a) & 0xFFFFF; /* the GPU sleeps at most about 1 ms */
            nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
            break;
        }
        case OP_LD:
        case OP_ST:
            if (!load_or_store(block, t, in))
                return false;
            break;
        case OP_ATOM:
            if (!atomic(block, t, in))
                return false;
            break;
        case OP_MOV: move(block, t, in); break;
        case OP_CVT: t->registers[in->d.index] = convert(in, read_raw(block, t, &in->a)); break;
        case OP_CVTA: t->registers[in->d.index] = generic_address(in, read_raw(block, t, &in->a), in->combines); break;
        case OP_SELP:
            t->registers[in->d.index] = fit(read_raw(block, t, read_raw(block, t, &in->c) & 1 ? &in->a : &in->b),
                                            in->type);
            break;
        case OP_SETP:
            set_predicate(block, t, in, fit(read_raw(block, t, &in->a), in->type),
                          fit(read_raw(block, t, &in->b), in->type));
            break;
        default: t->registers[in->d.index] = arithmetic(block, t, in); break;
        }
    }
}

static void run_block(struct block *block, struct thread *threads, uint32_t count)
{
    const struct ptx_kernel *kernel = block->launch->kernel;
    const uint32_t *n = block->launch->block;
    bool waiting = true;

    memset(block->shared, 0, block->shared_bytes);
    for (uint32_t i = 0; i < count; i++) {
        struct thread *t = &threads[i];
        memset(t->registers, 0, kernel->register_count * sizeof *t->registers);
        t->pc = 0;
        t->finished = false;
        t->tid[0] = i % n[0];
        t->tid[1] = i / n[0] % n[1];
        t->tid[2] = i / n[0] / n[1];
    }
    /* Each round takes every thread to its next barrier; one that returned counts as arrived. */
    while (waiting && block->result == PTX_OK) {
        waiting = false;
        for (uint32_t i = 0; i < count && block->result == PTX_OK; i++)
            if (!threads[i].finished)
                waiting |= run_thread(block, &threads[i]);
    }
}

enum ptx_result ptx_run(const struct ptx_launch *launch)
{
    const struct ptx_kernel *kernel = launch->kernel;
    uint32_t count = launch->block[0] * launch->block[1] * launch->block[2];
    struct block block = {.launch = launch, .shared_bytes = kernel->shared_bytes + launch->dynamic_shared};
    struct thread *threads = calloc(count, sizeof *threads);
    uint64_t *registers = calloc((size_t)count * (kernel->register_count + 1), sizeof *registers);
    unsigned char *local = calloc(count, kernel->local_bytes + 1);

    block.shared = calloc(1, block.shared_bytes + 1);
    if (!threads || !registers || !local || !block.shared)
        block.result = PTX_NO_HOST_MEMORY;
    for (uint32_t i = 0; i < count && block.result == PTX_OK; i++) {
        threads[i].registers = registers + (size_t)i * kernel->register_count;
        threads[i].local = local + (size_t)i * kernel->local_bytes;
    }
    for (uint32_t z = 0; z < launch->grid[2]; z++)
        for (uint32_t y = 0; y < launch->grid[1]; y++)
            for (uint32_t x = 0; x < launch->grid[0] && block.result == PTX_OK; x++) {
                launch->before_block(launch->context);
                block.index[0] = x, block.index[1] = y, block.index[2] = z;
                run_block(&block, threads, count);
            }
    free(threads);
    free(registers);
    free(local);
    free(block.shared);
    return block.result;
}
