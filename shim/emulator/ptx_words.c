#define _GNU_SOURCE
#include "ptx_words.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool ptx_grow(void **items, uint32_t *room, size_t size)
{
    uint32_t wanted = *room ? *room * 2 : 16;
    void *bigger = reallocarray(*items, wanted, size);
    if (!bigger)
        return false;
    *items = bigger;
    *room = wanted;
    return true;
}

bool ptx_fail(struct parser *p, uint32_t line, const char *format, ...)
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
bool ptx_tokenise(struct parser *p)
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
            return ptx_fail(p, line, "out of host memory");
        token->line = line;
        if (*s == '"') {
            char *end = strchr(s + 1, '"');
            token->text = "\"";
            if (!end)
                return ptx_fail(p, line, "string without an end");
            s = end + 1;
        } else if (word_length(s)) {
            size_t length = word_length(s);
            token->text = strndup(s, length);
            if (!token->text)
                return ptx_fail(p, line, "out of host memory");
            s += length;
        } else if (*s > ' ' && *s < 127) {
            token->text = punctuation[(unsigned char)*s++];
        } else {
            return ptx_fail(p, line, "byte 0x%02x is not PTX text", (unsigned char)*s);
        }
    }
    return true;
}

void ptx_forget_words(struct parser *p)
{
    for (uint32_t i = 0; i < p->tokens.count; i++)
        if (p->tokens.items[i].text && word_length(p->tokens.items[i].text))
            free((char *)p->tokens.items[i].text);
    free(p->tokens.items);
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

enum ptx_type ptx_type_named(const char *name)
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

bool ptx_number(const char *text, uint64_t *value)
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

bool ptx_register(struct parser *p, const char *name, uint32_t *index)
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

bool ptx_read_operand(struct parser *p, struct ptx_operand *out)
{
    uint32_t line = line_of(p);
    bool negative = accept(p, "-");
    const char *text = next(p);

    *out = (struct ptx_operand){0};
    if (ptx_number(text, &out->value)) {
        out->kind = OPERAND_IMMEDIATE;
        if (negative)
            out->value = -out->value;
        return true;
    }
    if (ptx_register(p, text, &out->index)) {
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
    return ptx_fail(p, line,
                    "'%s' is neither a register, a number, a special register nor a symbol known to the emulated GPU",
                    text);
}

bool ptx_read_address(struct parser *p, struct ptx_operand *out)
{
    uint64_t offset;

    if (!expect(p, "[") || !ptx_read_operand(p, out))
        return false;
    if (is(peek(p), "+") || is(peek(p), "-")) {
        bool negative = is(next(p), "-");
        negative ^= accept(p, "-");
        uint32_t line = line_of(p);
        const char *text = next(p);
        if (!ptx_number(text, &offset))
            return ptx_fail(p, line, "address offset '%s' is not a number", text);
        out->offset = negative ? -(int64_t)offset : (int64_t)offset;
    }
    return expect(p, "]");
}
