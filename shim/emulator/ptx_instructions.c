#define _GNU_SOURCE
#include <stdio.h>

#include "ptx_words.h"

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
    enum ptx_type type = ptx_type_named(modifier);

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
        return ptx_fail(p, line, "instruction '%s' is not known to the emulated GPU", text);
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
                return ptx_fail(p, line, "instruction '%s' is not known to the emulated GPU (modifier '.%s')", text,
                                modifier);
        }
        bool needs_type = *shape != SHAPE_NONE && *shape != SHAPE_BAR && *shape != SHAPE_BRA;
        if (needs_type && out->type == T_NONE)
            return ptx_fail(p, line, "instruction '%s' has no type known to the emulated GPU", text);
        return true;
    }
    return ptx_fail(p, line, "instruction '%s' is not known to the emulated GPU", text);
}

static bool lanes(struct parser *p, struct ptx_instruction *out)
{
    uint32_t count = 0;

    if (!expect(p, "{"))
        return false;
    do {
        if (count == PTX_VECTOR)
            return ptx_fail(p, line_of(p), "a vector of more than %d elements is not known to the emulated GPU",
                            PTX_VECTOR);
        if (!ptx_read_operand(p, &out->lanes[count++]))
            return false;
    } while (accept(p, ","));
    if (out->op == OP_MOV)
        out->vector = count;
    else if (count != out->vector)
        return ptx_fail(p, line_of(p), "a vector of %u elements where the instruction moves %u", count, out->vector);
    return expect(p, "}");
}

static bool value_or_lanes(struct parser *p, struct ptx_instruction *out, struct ptx_operand *single)
{
    if (is(peek(p), "{"))
        return lanes(p, out);
    if (out->op != OP_MOV && out->vector > 1)
        return ptx_fail(p, line_of(p), "expected a vector before '%s'", peek(p));
    out->lanes[0] = (struct ptx_operand){0};
    if (!ptx_read_operand(p, single))
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
    case SHAPE_A: return ptx_read_operand(p, &out->a);
    case SHAPE_BAR:
        if (!ptx_read_operand(p, &out->a))
            return false;
        if (out->a.kind != OPERAND_IMMEDIATE || out->a.value != 0 || is(peek(p), ","))
            return ptx_fail(p, line_of(p), "only 'bar.sync 0' over the whole block is known to the emulated GPU");
        return true;
    case SHAPE_BRA:
        fixup = PUSH(p->fixups);
        if (!fixup)
            return ptx_fail(p, line_of(p), "out of host memory");
        *fixup = (struct fixup){.instruction = p->code.count - 1, .line = line_of(p)};
        fixup->name = next(p);
        return true;
    case SHAPE_LD: return value_or_lanes(p, out, &out->d) && expect(p, ",") && ptx_read_address(p, &out->a);
    case SHAPE_ST: return ptx_read_address(p, &out->a) && expect(p, ",") && value_or_lanes(p, out, &out->b);
    case SHAPE_ATOM:
        return ptx_read_operand(p, &out->d) && expect(p, ",") && ptx_read_address(p, &out->a) && expect(p, ",") &&
               ptx_read_operand(p, &out->b) &&
               (out->atomic != ATOM_CAS || (expect(p, ",") && ptx_read_operand(p, &out->c)));
    case SHAPE_RED: return ptx_read_address(p, &out->a) && expect(p, ",") && ptx_read_operand(p, &out->b);
    case SHAPE_SETP:
        if (!ptx_read_operand(p, &out->d) || (accept(p, "|") && !ptx_read_operand(p, &out->d2)) || !expect(p, ",") ||
            !ptx_read_operand(p, &out->a) || !expect(p, ",") || !ptx_read_operand(p, &out->b))
            return false;
        if (!out->combines)
            return true;
        if (!expect(p, ","))
            return false;
        out->negate_c = accept(p, "!");
        return ptx_read_operand(p, &out->c);
    case SHAPE_D:
    case SHAPE_DA:
    case SHAPE_DAB:
    case SHAPE_DABC:
        if (out->op == OP_MOV)
            return value_or_lanes(p, out, &out->d) && expect(p, ",") && value_or_lanes(p, out, &out->a);
        if (!ptx_read_operand(p, &out->d))
            return false;
        for (int i = 0; i < (int)shape - SHAPE_D; i++)
            if (!expect(p, ",") || !ptx_read_operand(p, rest[i]))
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
        return ptx_fail(p, in->line, "the destination is not a register");
    if (writes && in->vector > 1 && in->d.kind == OPERAND_NONE)
        for (uint32_t i = 0; i < in->vector; i++)
            if (in->lanes[i].kind != OPERAND_REGISTER)
                return ptx_fail(p, in->line, "the destination is not a register");
    return true;
}

bool ptx_read_instruction(struct parser *p)
{
    uint32_t line = line_of(p);
    struct ptx_instruction *out = PUSH(p->code);
    enum shape shape = SHAPE_NONE;

    if (!out)
        return ptx_fail(p, line, "out of host memory");
    out->line = line;
    out->vector = 1;
    if (accept(p, "@")) {
        out->guarded = true;
        out->guard_negated = accept(p, "!");
        const char *name = next(p);
        if (!ptx_register(p, name, &out->guard))
            return ptx_fail(p, line, "'%s' is not a register", name);
    }
    return opcode(p, next(p), line, out, &shape) && operands(p, out, shape) && check_destination(p, out, shape) &&
           expect(p, ";");
}
