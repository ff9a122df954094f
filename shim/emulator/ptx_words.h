/* PTX as words: what the parts of the parser share. */
#ifndef VGPU_EMULATOR_PTX_WORDS_H
#define VGPU_EMULATOR_PTX_WORDS_H

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
#define PUSH(v)                                                                            \
    ((v).count == (v).room && !ptx_grow((void **)&(v).items, &(v).room, sizeof *(v).items) \
         ? NULL                                                                            \
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

bool ptx_grow(void **items, uint32_t *room, size_t size);
/* Keeps the first message for the module's log; returns false. */
__attribute__((format(printf, 3, 4))) bool ptx_fail(struct parser *p, uint32_t line, const char *format, ...);

/* Splits p->text. A word of the text is a copy of its own, punctuation is shared: ptx_forget_words knows which. */
bool ptx_tokenise(struct parser *p);
void ptx_forget_words(struct parser *p);

enum ptx_type ptx_type_named(const char *name); /* T_NONE: it is no type */
bool ptx_number(const char *text, uint64_t *value);
bool ptx_register(struct parser *p, const char *name, uint32_t *index);
bool ptx_read_operand(struct parser *p, struct ptx_operand *out);
bool ptx_read_address(struct parser *p, struct ptx_operand *out); /* in brackets */

/* A whole one, with its semicolon, to the end of p->code. */
bool ptx_read_instruction(struct parser *p);

static inline const char *peek(struct parser *p) { return p->at < p->tokens.count ? p->tokens.items[p->at].text : ""; }
static inline uint32_t line_of(struct parser *p)
{
    uint32_t at = p->at < p->tokens.count ? p->at : p->tokens.count - 1;
    return p->tokens.count ? p->tokens.items[at].line : 0;
}
static inline const char *next(struct parser *p)
{
    const char *text = peek(p);
    p->at++;
    return text;
}
static inline bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }
static inline bool accept(struct parser *p, const char *text)
{
    if (!is(peek(p), text))
        return false;
    p->at++;
    return true;
}
static inline bool expect(struct parser *p, const char *text)
{
    return accept(p, text) || ptx_fail(p, line_of(p), "expected '%s' before '%s'", text, peek(p));
}
static inline bool done(struct parser *p) { return p->failed || p->at >= p->tokens.count; }
static inline void skip_past(struct parser *p, const char *text)
{
    while (!done(p) && !is(next(p), text))
        ;
}

#endif
