#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "ptx_words.h"

static uint32_t align_up(uint32_t value, uint32_t alignment)
{
    return alignment ? (value + alignment - 1) / alignment * alignment : value;
}

struct variable {
    const char *name;
    enum ptx_type type;
    uint32_t align, size;
    bool unsized;
};

/* After `.shared`, `.local`, `.global`, `.const` or `.param`: [.align N] [.ptr ...] .type name[count] */
static bool variable(struct parser *p, struct variable *out)
{
    uint64_t n;

    *out = (struct variable){0};
    for (;;) {
        uint32_t line = line_of(p);
        const char *text = next(p);
        if (text[0] != '.') {
            out->name = text;
            break;
        }
        if (is(text, ".align")) {
            if (!ptx_number(next(p), &n) || n == 0 || n > 4096)
                return ptx_fail(p, line, "'.align' wants a number from 1 to 4096");
            /* after .ptr it tells of what is pointed at */
            out->align = out->align ? out->align : (uint32_t)n;
        } else if (ptx_type_named(text + 1) != T_NONE) {
            out->type = ptx_type_named(text + 1);
        } else if (!is(text, ".ptr") && !is(text, ".global") && !is(text, ".shared") && !is(text, ".const") &&
                   !is(text, ".local")) {
            return ptx_fail(p, line, "declaration '%s' is not known to the emulated GPU", text);
        }
    }
    out->size = (uint32_t)ptx_type_size(out->type);
    if (!out->size)
        return ptx_fail(p, line_of(p), "'%s' has no type known to the emulated GPU", out->name);
    if (out->align < out->size)
        out->align = out->align ? out->align : out->size;
    while (accept(p, "[")) {
        if (accept(p, "]")) {
            out->unsized = true;
            out->size = 0;
            continue;
        }
        uint32_t line = line_of(p);
        if (!ptx_number(next(p), &n) || n * out->size > UINT32_MAX / 2)
            return ptx_fail(p, line, "the size of '%s' is not a number that fits", out->name);
        out->size *= (uint32_t)n;
        if (!expect(p, "]"))
            return false;
    }
    return true;
}

static bool add_symbol(struct parser *p, const char *name, enum operand_kind kind, uint32_t offset, uint64_t address)
{
    struct symbol *symbol = PUSH(p->symbols);
    if (!symbol)
        return ptx_fail(p, line_of(p), "out of host memory");
    *symbol = (struct symbol){name, kind, offset, address};
    return true;
}

static bool shared_variable(struct parser *p, uint32_t *used)
{
    struct variable v;

    if (!variable(p, &v))
        return false;
    *used = align_up(*used, v.align);
    if (!add_symbol(p, v.name, OPERAND_SHARED, *used, 0))
        return false;
    *used += v.size;
    return expect(p, ";");
}

static bool initialiser(struct parser *p, struct ptx_global *global, enum ptx_type type)
{
    size_t element = ptx_type_size(type), at = 0;
    bool braces = accept(p, "{");

    global->initial = calloc(1, global->size ? global->size : 1);
    if (!global->initial)
        return ptx_fail(p, line_of(p), "out of host memory");
    do {
        uint64_t value;
        uint32_t line = line_of(p);
        bool negative = accept(p, "-");
        const char *text = next(p);
        if (!ptx_number(text, &value) || at + element > global->size)
            return ptx_fail(p, line, "initial value '%s' of '%s' is not known to the emulated GPU", text, global->name);
        value = negative ? -value : value;
        memcpy(global->initial + at, &value, element);
        at += element;
    } while (braces && accept(p, ","));
    return !braces || expect(p, "}");
}

static bool global_variable(struct parser *p)
{
    struct ptx_module *m = p->module;
    struct variable v;

    if (!variable(p, &v))
        return false;
    if (m->global_count == p->global_room && !ptx_grow((void **)&m->globals, &p->global_room, sizeof *m->globals))
        return ptx_fail(p, line_of(p), "out of host memory");
    struct ptx_global *global = &m->globals[m->global_count++];
    *global = (struct ptx_global){.name = strdup(v.name), .size = v.size, .align = v.align};
    if (accept(p, "=") && !initialiser(p, global, v.type))
        return false;
    global->address = p->allocate(p->context, v.size ? v.size : 1);
    if (!global->address || !global->name)
        return ptx_fail(p, line_of(p), "no device memory for '%s' (%u bytes)", v.name, v.size);
    if (global->initial)
        memcpy((void *)(uintptr_t)global->address, global->initial, v.size);
    return add_symbol(p, v.name, OPERAND_GLOBAL, 0, global->address) && expect(p, ";");
}

static bool registers(struct parser *p, struct ptx_kernel *kernel)
{
    next(p); /* the type: every register is 64 bits wide here, instructions say how they read it */
    do {
        struct family *family = PUSH(p->families);
        uint64_t count = 0;
        if (!family)
            return ptx_fail(p, line_of(p), "out of host memory");
        *family = (struct family){.prefix = next(p), .base = kernel->register_count};
        if (accept(p, "<")) {
            uint32_t line = line_of(p);
            if (!ptx_number(next(p), &count) || count == 0 || count > 1 << 20)
                return ptx_fail(p, line, "a register count must be from 1 to %d", 1 << 20);
            if (!expect(p, ">"))
                return false;
        }
        family->count = (uint32_t)count;
        kernel->register_count += count ? (uint32_t)count : 1;
    } while (accept(p, ","));
    return expect(p, ";");
}

static bool parameters(struct parser *p, struct ptx_kernel *kernel)
{
    uint32_t room = 0;

    if (!accept(p, "("))
        return true;
    while (!done(p) && !accept(p, ")")) {
        struct variable v;
        if (!expect(p, ".param") || !variable(p, &v))
            return false;
        if (kernel->parameter_count == room &&
            !ptx_grow((void **)&kernel->parameters, &room, sizeof *kernel->parameters))
            return ptx_fail(p, line_of(p), "out of host memory");
        /* a pointer's .align speaks of its target: parameters lie at their own size, or an array's .align */
        uint32_t align = v.size <= 8 && v.align > v.size ? v.size : v.align;
        uint32_t offset = align_up(kernel->parameter_bytes, align);
        kernel->parameters[kernel->parameter_count++] = (struct ptx_parameter){strdup(v.name), offset, v.size};
        kernel->parameter_bytes = offset + v.size;
        if (!add_symbol(p, v.name, OPERAND_PARAM, offset, 0))
            return false;
        accept(p, ",");
    }
    return true;
}

static bool resolve(struct parser *p)
{
    for (uint32_t i = 0; i < p->fixups.count; i++) {
        struct fixup *fixup = &p->fixups.items[i];
        uint32_t j = 0;
        while (j < p->labels.count && !is(p->labels.items[j].name, fixup->name))
            j++;
        if (j == p->labels.count)
            return ptx_fail(p, fixup->line, "branch to unknown label '%s'", fixup->name);
        p->code.items[fixup->instruction].target = p->labels.items[j].at;
    }
    return true;
}

static bool body(struct parser *p, struct ptx_kernel *kernel)
{
    int depth = 1;

    while (!done(p) && depth) {
        const char *text = peek(p);
        bool ok = true;
        if (accept(p, "{"))
            depth++;
        else if (accept(p, "}"))
            depth--;
        else if (accept(p, ".reg"))
            ok = registers(p, kernel);
        else if (accept(p, ".shared"))
            ok = shared_variable(p, &kernel->shared_bytes);
        else if (accept(p, ".local")) {
            struct variable v;
            ok = variable(p, &v);
            kernel->local_bytes = align_up(kernel->local_bytes, v.align);
            ok = ok && add_symbol(p, v.name, OPERAND_LOCAL, kernel->local_bytes, 0) && expect(p, ";");
            kernel->local_bytes += v.size;
        } else if (accept(p, ".pragma")) {
            skip_past(p, ";");
        } else if (accept(p, ".loc")) {
            uint32_t line = p->tokens.items[p->at - 1].line;
            while (!done(p) && line_of(p) == line)
                p->at++;
        } else if (text[0] != '.' && p->at + 1 < p->tokens.count && is(p->tokens.items[p->at + 1].text, ":")) {
            struct label *label = PUSH(p->labels);
            if (!label)
                return ptx_fail(p, line_of(p), "out of host memory");
            *label = (struct label){text, p->code.count};
            p->at += 2;
        } else
            ok = ptx_read_instruction(p);
        if (!ok)
            return false;
    }
    if (depth)
        return ptx_fail(p, line_of(p), "kernel '%s' has no end", kernel->name);
    /* falling off the end returns */
    struct ptx_instruction *last = PUSH(p->code);
    if (!last)
        return ptx_fail(p, line_of(p), "out of host memory");
    last->op = OP_EXIT;
    return resolve(p);
}

static bool entry(struct parser *p)
{
    struct ptx_module *m = p->module;
    uint32_t symbols = p->symbols.count;
    uint64_t n, threads = 1;

    if (m->kernel_count == p->kernel_room && !ptx_grow((void **)&m->kernels, &p->kernel_room, sizeof *m->kernels))
        return ptx_fail(p, line_of(p), "out of host memory");
    struct ptx_kernel *kernel = &m->kernels[m->kernel_count++];
    *kernel = (struct ptx_kernel){.name = strdup(next(p)), .shared_bytes = p->module_shared, .max_threads = 1024};
    if (!kernel->name || !parameters(p, kernel))
        return ptx_fail(p, line_of(p), "out of host memory");
    while (peek(p)[0] == '.') { /* performance directives: .maxntid 256, 1, 1 and its kin */
        bool limit = is(next(p), ".maxntid");
        do {
            if (!ptx_number(peek(p), &n))
                break;
            p->at++;
            threads = limit ? threads * n : threads;
        } while (accept(p, ","));
        if (limit && threads && threads < 1024)
            kernel->max_threads = (uint32_t)threads;
    }
    p->families.count = p->labels.count = p->fixups.count = p->code.count = 0;
    if (!expect(p, "{") || !body(p, kernel))
        return false;
    kernel->code = p->code.items;
    kernel->code_count = p->code.count;
    p->code.items = NULL;
    p->code.count = p->code.room = 0;
    p->symbols.count = symbols;
    return true;
}

static bool module_scope(struct parser *p)
{
    while (!done(p)) {
        uint32_t line = line_of(p);
        const char *text = next(p);
        bool ok = true;
        if (is(text, ".version") || is(text, ".address_size"))
            p->at++;
        else if (is(text, ".target"))
            do
                p->at++;
            while (accept(p, ","));
        else if (is(text, ".file") || is(text, ".loc")) {
            while (!done(p) && line_of(p) == line)
                p->at++;
        } else if (is(text, ".section")) {
            skip_past(p, "}");
        } else if (is(text, ".visible") || is(text, ".extern") || is(text, ".weak"))
            continue;
        else if (is(text, ".entry"))
            ok = entry(p);
        else if (is(text, ".shared"))
            ok = shared_variable(p, &p->module_shared);
        else if (is(text, ".global") || is(text, ".const"))
            ok = global_variable(p);
        else if (!is(text, ";"))
            return ptx_fail(p, line, "'%s' at module scope is not known to the emulated GPU", text);
        if (!ok)
            return false;
    }
    return !p->failed;
}

void ptx_free(struct ptx_module *module)
{
    if (!module)
        return;
    for (uint32_t i = 0; i < module->kernel_count; i++) {
        for (uint32_t j = 0; j < module->kernels[i].parameter_count; j++)
            free(module->kernels[i].parameters[j].name);
        free(module->kernels[i].parameters);
        free(module->kernels[i].code);
        free(module->kernels[i].name);
    }
    for (uint32_t i = 0; i < module->global_count; i++) {
        free(module->globals[i].name);
        free(module->globals[i].initial);
    }
    free(module->kernels);
    free(module->globals);
    free(module);
}

struct ptx_module *ptx_load(const char *text, uint64_t (*allocate)(void *, uint64_t), void *context, char *log,
                            size_t log_size)
{
    struct parser p = {
        .text = strdup(text), .module = calloc(1, sizeof *p.module), .allocate = allocate, .context = context};
    bool ok = p.text && p.module && ptx_tokenise(&p) && module_scope(&p);

    if (log_size)
        snprintf(log, log_size, "%s", p.module ? p.module->log : "out of host memory");
    ptx_forget_words(&p);
    free(p.symbols.items);
    free(p.families.items);
    free(p.labels.items);
    free(p.fixups.items);
    free(p.code.items);
    free(p.text);
    if (ok)
        return p.module;
    ptx_free(p.module);
    return NULL;
}
