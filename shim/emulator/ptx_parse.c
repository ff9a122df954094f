#define _GNU_SOURCE
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptx.h"

struct token {
    const char *text;
    uint32_t line;
};

struct family {
    const char *prefix;
    uint32_t count, base;
}; /* .reg .f32 %f<4> declares %f0..%f3 */
struct symbol {
    const char *name;
    enum operand_kind kind;
    uint32_t offset;
    uint64_t address;
};
struct label {
    const char *name;
    uint32_t at;
};
struct fixup {
    const char *name;
    uint32_t instruction, line;
};

#define VECTOR(type, name)    \
    struct {                  \
        type *items;          \
        uint32_t count, room; \
    } name
/* Append a zeroed item and yield it; NULL when memory is out. */
#define PUSH(v)                                                                        \
    ((v).count == (v).room && !grow((void **)&(v).items, &(v).room, sizeof *(v).items) \
         ? NULL                                                                        \
         : memset(&(v).items[(v).count++], 0, sizeof *(v).items))

struct parser {
    char *text;
    VECTOR(struct token, tokens);
    uint32_t at;
    uint64_t (*allocate)(void *, uint64_t);
    void *context;
    struct ptx_module *module;
    VECTOR(struct symbol, symbols); /* module scope first, then the kernel's own */
    VECTOR(struct family, families);
    VECTOR(struct label, labels);
    VECTOR(struct fixup, fixups);
    VECTOR(struct ptx_instruction, code);
    uint32_t kernel_room, global_room, parameter_room, module_shared;
    bool failed;
};

static bool grow(void **items, uint32_t *room, size_t size)
{
    uint32_t wanted = *room ? *room * 2 : 16;
    void *bigger = reallocarray(*items, wanted, size);
    if (!bigger)
        return false;
    *items = bigger;
    *room = wanted;
    return true;
}

static bool fail(struct parser *p, uint32_t line, const char *format, ...)
{
    char message[800];
    va_list list;

    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (!p->failed)
        snprintf(p->module->log, sizeof p->module->log, "ptx line %u: %s", line, message);
    p->failed = true;
    return false;
}

/* --- tokens --- */

/* Letters, digits, _ $ % . and, inside a word, the two colons of `shared::cta`; a label's single colon ends it. */
static size_t word_length(const char *s)
{
    size_t length = 0;

    for (;;) {
        if (isalnum((unsigned char)s[length]) || (s[length] && strchr("_$%.", s[length])))
            length++;
        else if (length && s[length] == ':' && s[length + 1] == ':')
            length += 2;
        else
            return length;
    }
}

/* Splits p->text in place. A token's end is cut with NUL, so punctuation is copied into static strings. */
static bool tokenise(struct parser *p)
{
    static const char *punctuation[128];
    static char texts[128][2];
    uint32_t line = 1;
    char *s = p->text;

    for (int c = '!'; c < 127; c++) {
        texts[c][0] = (char)c;
        punctuation[c] = texts[c];
    }
    while (*s) {
        if (*s == '\n')
            line++;
        if (isspace((unsigned char)*s)) {
            s++;
            continue;
        }
        if (s[0] == '/' && s[1] == '/') {
            s += strcspn(s, "\n");
            continue;
        }
        if (s[0] == '/' && s[1] == '*') {
            for (; *s && !(s[0] == '*' && s[1] == '/'); s++)
                line += *s == '\n';
            s += *s ? 2 : 0;
            continue;
        }
        struct token *token = PUSH(p->tokens);
        if (!token)
            return fail(p, line, "out of host memory");
        token->line = line;
        if (*s == '"') {
            char *end = strchr(s + 1, '"');
            token->text = "\"";
            if (!end)
                return fail(p, line, "string without an end");
            s = end + 1;
        } else if (word_length(s)) {
            size_t length = word_length(s);
            token->text = strndup(s, length);
            if (!token->text)
                return fail(p, line, "out of host memory");
            s += length;
        } else if (*s > ' ' && *s < 127) {
            token->text = punctuation[(unsigned char)*s++];
        } else {
            return fail(p, line, "byte 0x%02x is not PTX text", (unsigned char)*s);
        }
    }
    return true;
}

static const char *peek(struct parser *p) { return p->at < p->tokens.count ? p->tokens.items[p->at].text : ""; }
static uint32_t line_of(struct parser *p)
{
    uint32_t at = p->at < p->tokens.count ? p->at : p->tokens.count - 1;
    return p->tokens.count ? p->tokens.items[at].line : 0;
}
static const char *next(struct parser *p)
{
    const char *text = peek(p);
    p->at++;
    return text;
}
static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }
static bool accept(struct parser *p, const char *text)
{
    if (!is(peek(p), text))
        return false;
    p->at++;
    return true;
}
static bool expect(struct parser *p, const char *text)
{
    return accept(p, text) || fail(p, line_of(p), "expected '%s' before '%s'", text, peek(p));
}
static bool done(struct parser *p) { return p->failed || p->at >= p->tokens.count; }
static void skip_past(struct parser *p, const char *text)
{
    while (!done(p) && !is(next(p), text))
        ;
}

/* --- names and numbers --- */

static const struct {
    const char *name;
    enum ptx_type type;
} type_names[] = {
    {"b8", T_B8},   {"b16", T_B16}, {"b32", T_B32}, {"b64", T_B64}, {"u8", T_U8},
    {"u16", T_U16}, {"u32", T_U32}, {"u64", T_U64}, {"s8", T_S8},   {"s16", T_S16},
    {"s32", T_S32}, {"s64", T_S64}, {"f32", T_F32}, {"f64", T_F64}, {"pred", T_PRED},
};

static enum ptx_type type_named(const char *name)
{
    for (size_t i = 0; i < sizeof type_names / sizeof *type_names; i++)
        if (is(type_names[i].name, name))
            return type_names[i].type;
    return T_NONE;
}

size_t ptx_type_size(enum ptx_type type)
{
    static const size_t sizes[] = {[T_B8] = 1,  [T_U8] = 1,  [T_S8] = 1,  [T_B16] = 2, [T_U16] = 2,
                                   [T_S16] = 2, [T_B32] = 4, [T_U32] = 4, [T_S32] = 4, [T_F32] = 4,
                                   [T_B64] = 8, [T_U64] = 8, [T_S64] = 8, [T_F64] = 8, [T_PRED] = 1};
    return sizes[type];
}

static bool number(const char *text, uint64_t *value)
{
    char *end;

    if ((text[0] == '0') && strchr("fFdD", text[1] ? text[1] : ' ')) {
        *value = strtoull(text + 2, &end, 16);
        return *end == 0 && end != text + 2;
    }
    if (!isdigit((unsigned char)text[0]))
        return false;
    *value = strtoull(text, &end, 0);
    return *end == 0 || is(end, "U") || is(end, "u");
}

static bool register_index(struct parser *p, const char *name, uint32_t *index)
{
    size_t length = strlen(name);

    while (length && isdigit((unsigned char)name[length - 1]))
        length--;
    for (uint32_t i = p->families.count; i-- > 0;) {
        struct family *family = &p->families.items[i];
        if (family->count == 0 && is(family->prefix, name)) {
            *index = family->base;
            return true;
        }
        if (family->count && strlen(family->prefix) == length && strncmp(family->prefix, name, length) == 0 &&
            name[length]) {
            uint32_t n = (uint32_t)strtoul(name + length, NULL, 10);
            *index = family->base + n;
            return n < family->count;
        }
    }
    return false;
}

static const struct {
    const char *name;
    enum ptx_special special;
} specials[] = {
    {"%tid.x", SR_TID_X},       {"%tid.y", SR_TID_Y},       {"%tid.z", SR_TID_Z},
    {"%ntid.x", SR_NTID_X},     {"%ntid.y", SR_NTID_Y},     {"%ntid.z", SR_NTID_Z},
    {"%ctaid.x", SR_CTAID_X},   {"%ctaid.y", SR_CTAID_Y},   {"%ctaid.z", SR_CTAID_Z},
    {"%nctaid.x", SR_NCTAID_X}, {"%nctaid.y", SR_NCTAID_Y}, {"%nctaid.z", SR_NCTAID_Z},
    {"%laneid", SR_LANEID},     {"%warpid", SR_WARPID},     {"%smid", SR_SMID},
    {"%clock", SR_CLOCK},       {"%clock64", SR_CLOCK64},   {"%globaltimer", SR_GLOBALTIMER},
};

static bool operand(struct parser *p, struct ptx_operand *out)
{
    uint32_t line = line_of(p);
    bool negative = accept(p, "-");
    const char *text = next(p);

    *out = (struct ptx_operand){0};
    if (number(text, &out->value)) {
        out->kind = OPERAND_IMMEDIATE;
        if (negative)
            out->value = -out->value;
        return true;
    }
    if (register_index(p, text, &out->index)) {
        out->kind = OPERAND_REGISTER;
        return true;
    }
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
        if (is(specials[i].name, text)) {
            out->kind = OPERAND_SPECIAL;
            out->index = specials[i].special;
            return true;
        }
    for (uint32_t i = p->symbols.count; i-- > 0;)
        if (is(p->symbols.items[i].name, text)) {
            out->kind = p->symbols.items[i].kind;
            out->index = p->symbols.items[i].offset;
            out->value = p->symbols.items[i].address;
            return true;
        }
    return fail(p, line,
                "'%s' is neither a register, a number, a special register nor a symbol known to the emulated GPU",
                text);
}

static bool address(struct parser *p, struct ptx_operand *out)
{
    uint64_t offset;

    if (!expect(p, "[") || !operand(p, out))
        return false;
    if (is(peek(p), "+") || is(peek(p), "-")) {
        bool negative = is(next(p), "-");
        negative ^= accept(p, "-");
        uint32_t line = line_of(p);
        const char *text = next(p);
        if (!number(text, &offset))
            return fail(p, line, "address offset '%s' is not a number", text);
        out->offset = negative ? -(int64_t)offset : (int64_t)offset;
    }
    return expect(p, "]");
}

/* --- instructions --- */

enum shape {
    SHAPE_NONE,
    SHAPE_D,
    SHAPE_DA,
    SHAPE_DAB,
    SHAPE_DABC,
    SHAPE_LD,
    SHAPE_ST,
    SHAPE_BRA,
    SHAPE_ATOM,
    SHAPE_RED,
    SHAPE_SETP,
    SHAPE_BAR,
    SHAPE_A
};
static const struct {
    const char *name;
    enum ptx_op op;
    enum shape shape;
} opcodes[] = {
    {"abs", OP_ABS, SHAPE_DA},
    {"add", OP_ADD, SHAPE_DAB},
    {"and", OP_AND, SHAPE_DAB},
    {"atom", OP_ATOM, SHAPE_ATOM},
    {"bar", OP_BAR, SHAPE_BAR},
    {"barrier", OP_BAR, SHAPE_BAR},
    {"bra", OP_BRA, SHAPE_BRA},
    {"cos", OP_COS, SHAPE_DA},
    {"cvt", OP_CVT, SHAPE_DA},
    {"cvta", OP_CVTA, SHAPE_DA},
    {"div", OP_DIV, SHAPE_DAB},
    {"ex2", OP_EX2, SHAPE_DA},
    {"exit", OP_EXIT, SHAPE_NONE},
    {"fence", OP_FENCE, SHAPE_NONE},
    {"fma", OP_FMA, SHAPE_DABC},
    {"ld", OP_LD, SHAPE_LD},
    {"ldu", OP_LD, SHAPE_LD},
    {"lg2", OP_LG2, SHAPE_DA},
    {"mad", OP_MAD, SHAPE_DABC},
    {"max", OP_MAX, SHAPE_DAB},
    {"membar", OP_FENCE, SHAPE_NONE},
    {"min", OP_MIN, SHAPE_DAB},
    {"mov", OP_MOV, SHAPE_DA},
    {"mul", OP_MUL, SHAPE_DAB},
    {"nanosleep", OP_NANOSLEEP, SHAPE_A},
    {"neg", OP_NEG, SHAPE_DA},
    {"not", OP_NOT, SHAPE_DA},
    {"or", OP_OR, SHAPE_DAB},
    {"rcp", OP_RCP, SHAPE_DA},
    {"red", OP_ATOM, SHAPE_RED},
    {"rem", OP_REM, SHAPE_DAB},
    {"ret", OP_EXIT, SHAPE_NONE},
    {"rsqrt", OP_RSQRT, SHAPE_DA},
    {"selp", OP_SELP, SHAPE_DABC},
    {"setp", OP_SETP, SHAPE_SETP},
    {"shl", OP_SHL, SHAPE_DAB},
    {"shr", OP_SHR, SHAPE_DAB},
    {"sin", OP_SIN, SHAPE_DA},
    {"sqrt", OP_SQRT, SHAPE_DA},
    {"st", OP_ST, SHAPE_ST},
    {"sub", OP_SUB, SHAPE_DAB},
    {"trap", OP_TRAP, SHAPE_NONE},
    {"xor", OP_XOR, SHAPE_DAB},
};

static const struct {
    const char *name;
    enum ptx_compare compare;
} compares[] = {
    {"eq", CMP_EQ},   {"ne", CMP_NE},   {"lt", CMP_LT},   {"le", CMP_LE},   {"gt", CMP_GT},   {"ge", CMP_GE},
    {"lo", CMP_LT},   {"ls", CMP_LE},   {"hi", CMP_GT},   {"hs", CMP_GE},   {"equ", CMP_EQU}, {"neu", CMP_NEU},
    {"ltu", CMP_LTU}, {"leu", CMP_LEU}, {"gtu", CMP_GTU}, {"geu", CMP_GEU}, {"num", CMP_NUM}, {"nan", CMP_NAN},
};
static const struct {
    const char *name;
    enum ptx_round round;
    bool integer;
} rounds[] = {
    {"rn", ROUND_NEAREST, false}, {"rz", ROUND_ZERO, false}, {"rm", ROUND_DOWN, false}, {"rp", ROUND_UP, false},
    {"rni", ROUND_NEAREST, true}, {"rzi", ROUND_ZERO, true}, {"rmi", ROUND_DOWN, true}, {"rpi", ROUND_UP, true},
};
static const struct {
    const char *name;
    enum ptx_atomic atomic;
} atomics[] = {
    {"add", ATOM_ADD}, {"min", ATOM_MIN}, {"max", ATOM_MAX},   {"and", ATOM_AND},
    {"or", ATOM_OR},   {"xor", ATOM_XOR}, {"exch", ATOM_EXCH}, {"cas", ATOM_CAS},
};
static const struct {
    const char *name;
    enum ptx_space space;
} spaces[] = {
    {"global", SPACE_GLOBAL}, {"shared", SPACE_SHARED}, {"shared::cta", SPACE_SHARED},
    {"param", SPACE_PARAM},   {"local", SPACE_LOCAL},   {"const", SPACE_CONST},
};
/* Hints and orderings that one sequential engine satisfies by itself, for the opcodes that may carry them. */
static const struct {
    enum ptx_op op;
    const char *names;
} ignorable[] = {
    {OP_LD, " nc weak relaxed acquire volatile ca cg cs lu cv cta gpu sys "},
    {OP_ST, " weak relaxed release volatile wb cg cs wt cta gpu sys "},
    {OP_ATOM, " relaxed acquire release acq_rel cta gpu sys noftz "},
    {OP_FENCE, " cta gpu sys gl sc acq_rel acquire release "},
    {OP_BAR, " sync cta aligned "},
    {OP_BRA, " uni "},
    {OP_EXIT, " uni "},
    {OP_NANOSLEEP, ""},
    {OP_DIV, " approx full "},
    {OP_RCP, " approx "},
    {OP_SQRT, " approx "},
    {OP_RSQRT, " approx "},
    {OP_SIN, " approx "},
    {OP_COS, " approx "},
    {OP_EX2, " approx "},
    {OP_LG2, " approx "},
};

static bool can_ignore(enum ptx_op op, const char *modifier)
{
    char padded[64];

    snprintf(padded, sizeof padded, " %s ", modifier);
    for (size_t i = 0; i < sizeof ignorable / sizeof *ignorable; i++)
        if (ignorable[i].op == op && strstr(ignorable[i].names, padded))
            return true;
    return (op == OP_LD || op == OP_ST) && (strncmp(modifier, "L1::", 4) == 0 || strncmp(modifier, "L2::", 4) == 0);
}

static bool set_modifier(struct ptx_instruction *out, const char *modifier)
{
    enum ptx_type type = type_named(modifier);

    if (type != T_NONE) {
        if (out->type == T_NONE)
            out->type = type;
        out->source_type = type;
        return true;
    }
    if (out->op == OP_SETP) {
        for (size_t i = 0; i < sizeof compares / sizeof *compares; i++)
            if (is(compares[i].name, modifier)) {
                out->compare = compares[i].compare;
                return true;
            }
        if (is(modifier, "and") || is(modifier, "or") || is(modifier, "xor")) {
            out->combines = true;
            out->combine = is(modifier, "and") ? OP_AND : is(modifier, "or") ? OP_OR : OP_XOR;
            return true;
        }
    }
    if (out->op == OP_ATOM)
        for (size_t i = 0; i < sizeof atomics / sizeof *atomics; i++)
            if (is(atomics[i].name, modifier)) {
                out->atomic = atomics[i].atomic;
                return true;
            }
    if (out->op == OP_LD || out->op == OP_ST || out->op == OP_ATOM || out->op == OP_CVTA) {
        for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++)
            if (is(spaces[i].name, modifier)) {
                out->space = spaces[i].space;
                return true;
            }
        if (is(modifier, "v2") || is(modifier, "v4")) {
            out->vector = (uint32_t)(modifier[1] - '0');
            return true;
        }
    }
    for (size_t i = 0; i < sizeof rounds / sizeof *rounds; i++)
        if (is(rounds[i].name, modifier)) {
            out->round = rounds[i].round;
            out->integer_round = rounds[i].integer;
            return true;
        }
    if (out->op == OP_MUL || out->op == OP_MAD) {
        static const char *const widths[] = {[WIDTH_LO] = "lo", [WIDTH_HI] = "hi", [WIDTH_WIDE] = "wide"};
        for (int i = WIDTH_LO; i <= WIDTH_WIDE; i++)
            if (is(widths[i], modifier)) {
                out->width = (enum ptx_width)i;
                return true;
            }
    }
    if (out->op == OP_CVTA && is(modifier, "to"))
        return out->combines = true; /* from generic to the named space */
    if (is(modifier, "ftz"))
        return true; /* denormals are kept: more exact than asked */
    if (is(modifier, "sat"))
        return out->saturate = true;
    return can_ignore(out->op, modifier);
}

static bool opcode(struct parser *p, const char *text, uint32_t line, struct ptx_instruction *out, enum shape *shape)
{
    char copy[128], *rest = copy;

    if (strlen(text) >= sizeof copy)
        return fail(p, line, "instruction '%s' is not known to the emulated GPU", text);
    strcpy(copy, text);
    char *name = strsep(&rest, ".");
    for (size_t i = 0; i < sizeof opcodes / sizeof *opcodes; i++) {
        if (!is(opcodes[i].name, name))
            continue;
        out->op = opcodes[i].op;
        *shape = opcodes[i].shape;
        while (rest) {
            char *modifier = strsep(&rest, ".");
            if (!set_modifier(out, modifier))
                return fail(p, line, "instruction '%s' is not known to the emulated GPU (modifier '.%s')", text,
                            modifier);
        }
        bool needs_type = *shape != SHAPE_NONE && *shape != SHAPE_BAR && *shape != SHAPE_BRA;
        if (needs_type && out->type == T_NONE)
            return fail(p, line, "instruction '%s' has no type known to the emulated GPU", text);
        return true;
    }
    return fail(p, line, "instruction '%s' is not known to the emulated GPU", text);
}

static bool lanes(struct parser *p, struct ptx_instruction *out)
{
    uint32_t count = 0;

    if (!expect(p, "{"))
        return false;
    do {
        if (count == PTX_VECTOR)
            return fail(p, line_of(p), "a vector of more than %d elements is not known to the emulated GPU",
                        PTX_VECTOR);
        if (!operand(p, &out->lanes[count++]))
            return false;
    } while (accept(p, ","));
    if (out->op == OP_MOV)
        out->vector = count;
    else if (count != out->vector)
        return fail(p, line_of(p), "a vector of %u elements where the instruction moves %u", count, out->vector);
    return expect(p, "}");
}

static bool value_or_lanes(struct parser *p, struct ptx_instruction *out, struct ptx_operand *single)
{
    if (is(peek(p), "{"))
        return lanes(p, out);
    if (out->op != OP_MOV && out->vector > 1)
        return fail(p, line_of(p), "expected a vector before '%s'", peek(p));
    out->lanes[0] = (struct ptx_operand){0};
    if (!operand(p, single))
        return false;
    if (out->op != OP_MOV)
        out->lanes[0] = *single;
    return true;
}

static bool operands(struct parser *p, struct ptx_instruction *out, enum shape shape)
{
    struct ptx_operand *const rest[] = {&out->a, &out->b, &out->c};
    struct fixup *fixup;

    switch (shape) {
    case SHAPE_NONE: return true;
    case SHAPE_A: return operand(p, &out->a);
    case SHAPE_BAR:
        if (!operand(p, &out->a))
            return false;
        if (out->a.kind != OPERAND_IMMEDIATE || out->a.value != 0 || is(peek(p), ","))
            return fail(p, line_of(p), "only 'bar.sync 0' over the whole block is known to the emulated GPU");
        return true;
    case SHAPE_BRA:
        fixup = PUSH(p->fixups);
        if (!fixup)
            return fail(p, line_of(p), "out of host memory");
        *fixup = (struct fixup){.instruction = p->code.count - 1, .line = line_of(p)};
        fixup->name = next(p);
        return true;
    case SHAPE_LD: return value_or_lanes(p, out, &out->d) && expect(p, ",") && address(p, &out->a);
    case SHAPE_ST: return address(p, &out->a) && expect(p, ",") && value_or_lanes(p, out, &out->b);
    case SHAPE_ATOM:
        return operand(p, &out->d) && expect(p, ",") && address(p, &out->a) && expect(p, ",") && operand(p, &out->b) &&
               (out->atomic != ATOM_CAS || (expect(p, ",") && operand(p, &out->c)));
    case SHAPE_RED: return address(p, &out->a) && expect(p, ",") && operand(p, &out->b);
    case SHAPE_SETP:
        if (!operand(p, &out->d) || (accept(p, "|") && !operand(p, &out->d2)) || !expect(p, ",") ||
            !operand(p, &out->a) || !expect(p, ",") || !operand(p, &out->b))
            return false;
        if (!out->combines)
            return true;
        if (!expect(p, ","))
            return false;
        out->negate_c = accept(p, "!");
        return operand(p, &out->c);
    case SHAPE_D:
    case SHAPE_DA:
    case SHAPE_DAB:
    case SHAPE_DABC:
        if (out->op == OP_MOV)
            return value_or_lanes(p, out, &out->d) && expect(p, ",") && value_or_lanes(p, out, &out->a);
        if (!operand(p, &out->d))
            return false;
        for (int i = 0; i < (int)shape - SHAPE_D; i++)
            if (!expect(p, ",") || !operand(p, rest[i]))
                return false;
        return true;
    }
    return false;
}

static bool check_destination(struct parser *p, const struct ptx_instruction *in, enum shape shape)
{
    bool writes = (shape >= SHAPE_D && shape <= SHAPE_DABC) || shape == SHAPE_SETP || shape == SHAPE_ATOM ||
                  shape == SHAPE_LD;

    if (writes && in->vector <= 1 && in->d.kind != OPERAND_REGISTER)
        return fail(p, in->line, "the destination is not a register");
    if (writes && in->vector > 1 && in->d.kind == OPERAND_NONE)
        for (uint32_t i = 0; i < in->vector; i++)
            if (in->lanes[i].kind != OPERAND_REGISTER)
                return fail(p, in->line, "the destination is not a register");
    return true;
}

static bool instruction(struct parser *p)
{
    uint32_t line = line_of(p);
    struct ptx_instruction *out = PUSH(p->code);
    enum shape shape = SHAPE_NONE;

    if (!out)
        return fail(p, line, "out of host memory");
    out->line = line;
    out->vector = 1;
    if (accept(p, "@")) {
        out->guarded = true;
        out->guard_negated = accept(p, "!");
        const char *name = next(p);
        if (!register_index(p, name, &out->guard))
            return fail(p, line, "'%s' is not a register", name);
    }
    return opcode(p, next(p), line, out, &shape) && operands(p, out, shape) && check_destination(p, out, shape) &&
           expect(p, ";");
}

/* --- declarations --- */

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
            if (!number(next(p), &n) || n == 0 || n > 4096)
                return fail(p, line, "'.align' wants a number from 1 to 4096");
            /* after .ptr it tells of what is pointed at */
            out->align = out->align ? out->align : (uint32_t)n;
        } else if (type_named(text + 1) != T_NONE) {
            out->type = type_named(text + 1);
        } else if (!is(text, ".ptr") && !is(text, ".global") && !is(text, ".shared") && !is(text, ".const") &&
                   !is(text, ".local")) {
            return fail(p, line, "declaration '%s' is not known to the emulated GPU", text);
        }
    }
    out->size = (uint32_t)ptx_type_size(out->type);
    if (!out->size)
        return fail(p, line_of(p), "'%s' has no type known to the emulated GPU", out->name);
    if (out->align < out->size)
        out->align = out->align ? out->align : out->size;
    while (accept(p, "[")) {
        if (accept(p, "]")) {
            out->unsized = true;
            out->size = 0;
            continue;
        }
        uint32_t line = line_of(p);
        if (!number(next(p), &n) || n * out->size > UINT32_MAX / 2)
            return fail(p, line, "the size of '%s' is not a number that fits", out->name);
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
        return fail(p, line_of(p), "out of host memory");
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
        return fail(p, line_of(p), "out of host memory");
    do {
        uint64_t value;
        uint32_t line = line_of(p);
        bool negative = accept(p, "-");
        const char *text = next(p);
        if (!number(text, &value) || at + element > global->size)
            return fail(p, line, "initial value '%s' of '%s' is not known to the emulated GPU", text, global->name);
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
    if (m->global_count == p->global_room && !grow((void **)&m->globals, &p->global_room, sizeof *m->globals))
        return fail(p, line_of(p), "out of host memory");
    struct ptx_global *global = &m->globals[m->global_count++];
    *global = (struct ptx_global){.name = strdup(v.name), .size = v.size, .align = v.align};
    if (accept(p, "=") && !initialiser(p, global, v.type))
        return false;
    global->address = p->allocate(p->context, v.size ? v.size : 1);
    if (!global->address || !global->name)
        return fail(p, line_of(p), "no device memory for '%s' (%u bytes)", v.name, v.size);
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
            return fail(p, line_of(p), "out of host memory");
        *family = (struct family){.prefix = next(p), .base = kernel->register_count};
        if (accept(p, "<")) {
            uint32_t line = line_of(p);
            if (!number(next(p), &count) || count == 0 || count > 1 << 20)
                return fail(p, line, "a register count must be from 1 to %d", 1 << 20);
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
        if (kernel->parameter_count == room && !grow((void **)&kernel->parameters, &room, sizeof *kernel->parameters))
            return fail(p, line_of(p), "out of host memory");
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
            return fail(p, fixup->line, "branch to unknown label '%s'", fixup->name);
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
                return fail(p, line_of(p), "out of host memory");
            *label = (struct label){text, p->code.count};
            p->at += 2;
        } else
            ok = instruction(p);
        if (!ok)
            return false;
    }
    if (depth)
        return fail(p, line_of(p), "kernel '%s' has no end", kernel->name);
    /* falling off the end returns */
    struct ptx_instruction *last = PUSH(p->code);
    if (!last)
        return fail(p, line_of(p), "out of host memory");
    last->op = OP_EXIT;
    return resolve(p);
}

static bool entry(struct parser *p)
{
    struct ptx_module *m = p->module;
    uint32_t symbols = p->symbols.count;
    uint64_t n, threads = 1;

    if (m->kernel_count == p->kernel_room && !grow((void **)&m->kernels, &p->kernel_room, sizeof *m->kernels))
        return fail(p, line_of(p), "out of host memory");
    struct ptx_kernel *kernel = &m->kernels[m->kernel_count++];
    *kernel = (struct ptx_kernel){.name = strdup(next(p)), .shared_bytes = p->module_shared, .max_threads = 1024};
    if (!kernel->name || !parameters(p, kernel))
        return fail(p, line_of(p), "out of host memory");
    while (peek(p)[0] == '.') { /* performance directives: .maxntid 256, 1, 1 and its kin */
        bool limit = is(next(p), ".maxntid");
        do {
            if (!number(peek(p), &n))
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
            return fail(p, line, "'%s' at module scope is not known to the emulated GPU", text);
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
    bool ok = p.text && p.module && tokenise(&p) && module_scope(&p);

    if (log_size)
        snprintf(log, log_size, "%s", p.module ? p.module->log : "out of host memory");
    for (uint32_t i = 0; i < p.tokens.count; i++)
        if (p.tokens.items[i].text && word_length(p.tokens.items[i].text))
            free((char *)p.tokens.items[i].text);
    free(p.tokens.items);
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
