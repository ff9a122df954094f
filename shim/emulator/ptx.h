/* PTX for the emulated GPU: parsed once into a compact program, interpreted by thread block. */
#ifndef VGPU_EMULATOR_PTX_H
#define VGPU_EMULATOR_PTX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ptx_type {
    T_NONE,
    T_B8,
    T_B16,
    T_B32,
    T_B64,
    T_U8,
    T_U16,
    T_U32,
    T_U64,
    T_S8,
    T_S16,
    T_S32,
    T_S64,
    T_F32,
    T_F64,
    T_PRED,
};
size_t ptx_type_size(enum ptx_type type);

enum ptx_op {
    OP_ABS,
    OP_ADD,
    OP_AND,
    OP_ATOM,
    OP_BAR,
    OP_BRA,
    OP_COS,
    OP_CVT,
    OP_CVTA,
    OP_DIV,
    OP_EX2,
    OP_EXIT,
    OP_FENCE,
    OP_FMA,
    OP_LD,
    OP_LG2,
    OP_MAD,
    OP_MAX,
    OP_MIN,
    OP_MOV,
    OP_MUL,
    OP_NANOSLEEP,
    OP_NEG,
    OP_NOT,
    OP_OR,
    OP_RCP,
    OP_REM,
    OP_RSQRT,
    OP_SELP,
    OP_SETP,
    OP_SHL,
    OP_SHR,
    OP_SIN,
    OP_SQRT,
    OP_ST,
    OP_SUB,
    OP_TRAP,
    OP_XOR,
};

enum ptx_space { SPACE_GENERIC, SPACE_GLOBAL, SPACE_SHARED, SPACE_PARAM, SPACE_LOCAL, SPACE_CONST };
enum ptx_compare {
    CMP_NONE,
    CMP_EQ,
    CMP_NE,
    CMP_LT,
    CMP_LE,
    CMP_GT,
    CMP_GE,
    CMP_EQU,
    CMP_NEU,
    CMP_LTU,
    CMP_LEU,
    CMP_GTU,
    CMP_GEU,
    CMP_NUM,
    CMP_NAN
};
enum ptx_round { ROUND_NONE, ROUND_NEAREST, ROUND_ZERO, ROUND_DOWN, ROUND_UP };
enum ptx_atomic { ATOM_ADD, ATOM_MIN, ATOM_MAX, ATOM_AND, ATOM_OR, ATOM_XOR, ATOM_EXCH, ATOM_CAS };
enum ptx_width { WIDTH_SAME, WIDTH_LO, WIDTH_HI, WIDTH_WIDE };

enum ptx_special {
    SR_TID_X,
    SR_TID_Y,
    SR_TID_Z,
    SR_NTID_X,
    SR_NTID_Y,
    SR_NTID_Z,
    SR_CTAID_X,
    SR_CTAID_Y,
    SR_CTAID_Z,
    SR_NCTAID_X,
    SR_NCTAID_Y,
    SR_NCTAID_Z,
    SR_LANEID,
    SR_WARPID,
    SR_SMID,
    SR_CLOCK,
    SR_CLOCK64,
    SR_GLOBALTIMER,
};

enum operand_kind {
    OPERAND_NONE,
    OPERAND_REGISTER,
    OPERAND_IMMEDIATE,
    OPERAND_SPECIAL,
    OPERAND_SHARED,
    OPERAND_LOCAL,
    OPERAND_GLOBAL,
    OPERAND_PARAM
};
struct ptx_operand {
    enum operand_kind kind;
    uint32_t index; /* register, special register, or offset of a symbol in its space */
    int64_t offset; /* added to an address */
    uint64_t value; /* immediate bits, or a global's address */
};

#define PTX_VECTOR 4
struct ptx_instruction {
    enum ptx_op op;
    enum ptx_type type, source_type;
    enum ptx_space space;
    enum ptx_compare compare;
    enum ptx_round round;
    enum ptx_atomic atomic;
    enum ptx_width width;
    enum ptx_op combine; /* setp.and/or/xor: how `c` joins in */
    bool combines, integer_round, saturate;
    bool guarded, guard_negated, negate_c;
    uint32_t guard;
    uint32_t vector; /* elements of a ld/st, 1 for scalars */
    uint32_t target; /* branch */
    uint32_t line;
    struct ptx_operand d, d2, a, b, c;
    struct ptx_operand lanes[PTX_VECTOR];
};

struct ptx_parameter {
    char *name;
    uint32_t offset, size;
};

struct ptx_kernel {
    char *name;
    struct ptx_parameter *parameters;
    uint32_t parameter_count, parameter_bytes;
    struct ptx_instruction *code;
    uint32_t code_count, register_count;
    uint32_t shared_bytes, local_bytes, max_threads;
};

struct ptx_global {
    char *name;
    uint32_t size, align;
    unsigned char *initial;
    uint64_t address;
};

struct ptx_module {
    struct ptx_kernel *kernels;
    uint32_t kernel_count;
    struct ptx_global *globals;
    uint32_t global_count;
    char log[1024]; /* why it could not be loaded: line and instruction */
};

/* Parse PTX text. allocate() gives device memory to module-scope variables. NULL: `log` says why. */
struct ptx_module *ptx_load(const char *text, uint64_t (*allocate)(void *, uint64_t), void *context, char *log,
                            size_t log_size);
void ptx_free(struct ptx_module *module);

struct ptx_launch {
    const struct ptx_kernel *kernel;
    const unsigned char *parameters;
    uint32_t grid[3], block[3], dynamic_shared;
    bool (*readable)(void *, uint64_t address, uint64_t size); /* is this device memory? */
    void (*before_block)(void *);                              /* may sleep: the channel may be off */
    void *context;
};

enum ptx_result { PTX_OK, PTX_ILLEGAL_ADDRESS, PTX_TRAP, PTX_MISALIGNED, PTX_NO_HOST_MEMORY };
enum ptx_result ptx_run(const struct ptx_launch *launch);

#endif
