/* PTX: what it says of what it does not know, and that nonsense harms nothing. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "ptx.h"

#define HEAD ".version 8.0\n.target sm_90\n.address_size 64\n"

static char log_text[1024];

static uint64_t allocate(void *context, uint64_t size)
{
    (void)context;
    return (uintptr_t)calloc(1, size);
}

static struct ptx_module *load(const char *text) { return ptx_load(text, allocate, NULL, log_text, sizeof log_text); }

static void refused(const char *text, const char *words)
{
    struct ptx_module *module = load(text);
    CHECK(module == NULL);
    if (!strstr(log_text, words))
        fprintf(stderr, "log: %s\nwanted: %s\n", log_text, words);
    CHECK(strstr(log_text, words) != NULL);
    ptx_free(module);
}

static uint64_t memory[64];
static bool readable(void *context, uint64_t address, uint64_t size)
{
    uint64_t from = (uintptr_t)memory;
    (void)context;
    return address >= from && size <= sizeof memory && address - from <= sizeof memory - size;
}
static void before_block(void *context) { ++*(int *)context; }

static enum ptx_result run(struct ptx_module *module, const void *parameters, uint32_t grid, uint32_t block,
                           int *blocks)
{
    struct ptx_launch launch = {.kernel = &module->kernels[0],
                                .parameters = parameters,
                                .grid = {grid, 1, 1},
                                .block = {block, 1, 1},
                                .readable = readable,
                                .before_block = before_block,
                                .context = blocks};
    return ptx_run(&launch);
}

static void threads_meet_at_a_barrier(void)
{
    static const char text[] = HEAD
        ".visible .entry k(.param .u64 out)\n{\n.reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<4>;\n"
        ".shared .align 4 .b8 s[256];\n"
        "ld.param.u64 %rd1, [out]; cvta.to.global.u64 %rd1, %rd1;\n"
        "mov.u32 %r1, %tid.x; mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;\n"
        "st.shared.u32 [%r4], %r1; bar.sync 0;\n"
        "xor.b32 %r5, %r3, 252; add.s32 %r5, %r2, %r5; ld.shared.u32 %r6, [%r5];\n"
        "mul.wide.u32 %rd2, %r1, 8; add.s64 %rd3, %rd1, %rd2; cvt.u64.u32 %rd2, %r6; st.global.u64 [%rd3], "
        "%rd2;\nret;\n}\n";
    struct ptx_module *module = load(text);
    uint64_t out = (uintptr_t)memory;
    int blocks = 0;

    CHECK(module != NULL);
    if (!module)
        return;
    CHECK(run(module, &out, 3, 64, &blocks) == PTX_OK);
    CHECK(blocks == 3); /* asked before every block: this is where a channel is switched off */
    for (uint64_t i = 0; i < 64; i++)
        CHECK(memory[i] == 63 - i);
    out += 8; /* the last thread writes beyond what was allocated */
    CHECK(run(module, &out, 1, 64, &blocks) == PTX_ILLEGAL_ADDRESS);
    out += 4;
    CHECK(run(module, &out, 1, 1, &blocks) == PTX_MISALIGNED);
    ptx_free(module);
}

static void nonsense_is_refused(void)
{
    static const char whole[] = HEAD
        ".visible .entry k(.param .u64 a)\n{\n.reg .b64 %rd<4>;\n$L: @%p bra $L; ld.param.u64 %rd1, [a+0]; ret;\n}\n";
    char copy[sizeof whole];

    for (size_t cut = 0; cut < sizeof whole; cut++) { /* every beginning, and every single byte changed */
        memcpy(copy, whole, cut);
        copy[cut] = 0;
        ptx_free(load(copy));
        for (int value = 1; value < 256; value += 37) {
            memcpy(copy, whole, sizeof whole);
            copy[cut] = (char)value;
            copy[sizeof whole - 1] = 0;
            ptx_free(load(copy));
        }
    }
}

void test_ptx(void)
{
    refused(HEAD ".entry k()\n{\n.reg .b32 %r<2>;\nshfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;\n}\n",
            "ptx line 7: instruction 'shfl.sync.bfly.b32'");
    refused(HEAD ".entry k()\n{\n.reg .f32 %f<2>;\nadd.f16 %f1, %f1, %f1;\n}\n",
            "ptx line 7: instruction 'add.f16' is not known to the emulated GPU (modifier '.f16')");
    refused(HEAD ".entry k()\n{\nbra $nowhere;\n}\n", "branch to unknown label '$nowhere'");
    refused(HEAD ".entry k()\n{\n.reg .b32 %r<2>;\nmov.u32 %r7, 1;\n}\n", "'%r7' is neither a register");
    refused(HEAD ".func f()\n{\nret;\n}\n", "'.func' at module scope");
    refused(HEAD ".entry k()\n{\nbar.sync 1, 32;\n}\n", "only 'bar.sync 0'");
    refused(":: :", "':' at module scope");
    threads_meet_at_a_barrier();
    nonsense_is_refused();
}
