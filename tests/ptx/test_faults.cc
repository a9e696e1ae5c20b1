/* test_faults.cc - the interpreter's own test: of every fault that it must name a small kernel that
 * commits it, and beside it one that does the same as it should be done, of which nothing is said.
 *
 * Each runs in a process of its own, on 66 words of device memory that hold zeros. */
#include "tests/ptx/machine.h"
#include "tests/ptx/runtime.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

struct trial {
    const char *what;
    unsigned blocks, threads;
    const char *body;
    const char *says; /* NULL: nothing is wrong */
};

/* In every kernel %r1 is the thread and %r2 the block, %rd1 the data and %rd3 the thread's own word
 * of it, %r4 the thread's own word of `room`. */
static const char head[] = R"(
.version 8.0
.target sm_90
.address_size 64
.visible .entry small(.param .u64 data)
.maxntid 128, 1, 1
{
    .reg .pred %p<4>;
    .reg .b32 %r<16>;
    .reg .f32 %f<16>;
    .reg .b64 %rd<8>;
    .shared .align 16 .b8 room[1024];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    ld.param.u64 %rd1, [data];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    shl.b32 %r4, %r1, 2;
)";

static const trial trials[] = {
    /* -- alignment -- */
    {"a wide load", 1, 1, "ld.global.v2.u32 {%r5, %r6}, [%rd1+8];", NULL},
    {"a wide load between", 1, 1, "ld.global.v2.u32 {%r5, %r6}, [%rd1+4];",
     "is not a multiple of 8"},
    {"a wide store between", 1, 1, "st.global.v4.u32 [%rd1+8], {%r1, %r1, %r1, %r1};",
     "is not a multiple of 16"},
    {"a wide store to shared memory between", 1, 1, "st.shared.v2.u32 [%r4+4], {%r1, %r1};",
     "is not a multiple of 8"},
    {"a copy from between", 1, 1, "cp.async.cg.shared.global [%r4], [%rd1+8], 16;",
     "is not a multiple of 16"},
    {"a copy to between", 1, 1, "cp.async.cg.shared.global [%r4+8], [%rd1], 16;",
     "is not a multiple of 16"},
    {"rows of matrices between", 1, 32,
     "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4+8];",
     "is not a multiple of 16"},
    /* -- bounds -- */
    {"the last word", 1, 1, "st.global.u32 [%rd1+260], %r1;", NULL},
    {"beyond the last word", 1, 1, "st.global.u32 [%rd1+264], %r1;", "outside the blocks"},
    {"before the first word", 1, 1, "ld.global.u32 %r5, [%rd1+-4];", "outside the blocks"},
    {"half beyond the last word", 1, 1, "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+256];",
     "outside the blocks"},
    {"a copy from beyond", 1, 1, "cp.async.cg.shared.global [%r4], [%rd1+272], 16;",
     "outside the blocks"},
    {"nothing copied from beyond", 1, 1, R"(
    mov.u32 %r5, 0;
    cp.async.cg.shared.global [%r4], [%rd1+256], 16, %r5;
    cp.async.wait_all;)",
     NULL},
    {"beyond the shared memory", 1, 1, "st.shared.u32 [%r4+1024], %r1;",
     "bytes 1024 ... of 1024 of shared memory"},
    /* -- what is not there -- */
    {"what the thread wrote", 1, 1, "st.shared.u32 [%r4], %r1; ld.shared.u32 %r5, [%r4];", NULL},
    {"what nobody wrote", 1, 1, "st.shared.u32 [%r4], %r1; ld.shared.u32 %r5, [%r4+4];",
     "reads shared memory that nobody wrote"},
    {"what the block before wrote", 2, 1, R"(
    setp.eq.s32 %p1, %r2, 0;
    @%p1 st.shared.u32 [%r4], %r1;
    ld.shared.u32 %r5, [%r4];)",
     "reads shared memory that nobody wrote"},
    {"a copy that was waited for", 1, 1, R"(
    cp.async.cg.shared.global [%r4], [%rd1], 16;
    cp.async.wait_all;
    ld.shared.u32 %r5, [%r4+12];)",
     NULL},
    {"a copy in flight is read", 1, 1, R"(
    cp.async.cg.shared.global [%r4], [%rd1], 16;
    ld.shared.u32 %r5, [%r4+12];)",
     "reads where an asynchronous copy is in flight"},
    {"a copy in flight is overwritten", 1, 1, R"(
    cp.async.cg.shared.global [%r4], [%rd1], 16;
    st.shared.u32 [%r4], %r1;)",
     "writes where an asynchronous copy is in flight"},
    {"a copy in flight after a barrier", 1, 64, R"(
    setp.eq.s32 %p1, %r1, 32;
    @%p1 cp.async.cg.shared.global [%r4], [%rd1], 16;
    bar.sync 0;
    ld.shared.u32 %r5, [room+128];)",
     "reads where an asynchronous copy is in flight"},
    {"a copy in flight at the end", 1, 1, "cp.async.cg.shared.global [%r4], [%rd1], 16;",
     "leaves while a copy is in flight"},
    {"a copy of too many bytes", 1, 1,
     "mov.u32 %r5, 20; cp.async.cg.shared.global [%r4], [%rd1], 16, %r5;", "reads 20 bytes for 16"},
    /* -- races within a block -- */
    {"another warp's word behind a barrier", 1, 64, R"(
    st.shared.u32 [%r4], %r1;
    bar.sync 0;
    xor.b32 %r5, %r4, 128;
    ld.shared.u32 %r6, [%r5];)",
     NULL},
    {"another warp's word", 1, 64, R"(
    st.shared.u32 [%r4], %r1;
    bar.warp.sync -1;
    xor.b32 %r5, %r4, 128;
    setp.ge.s32 %p1, %r1, 32;
    @%p1 ld.shared.u32 %r6, [%r5];)",
     "reads what thread 0 wrote, and no barrier lies between"},
    {"a neighbour's word behind the warp's barrier", 1, 32, R"(
    st.shared.u32 [%r4], %r1;
    bar.warp.sync -1;
    xor.b32 %r5, %r4, 4;
    ld.shared.u32 %r6, [%r5];)",
     NULL},
    {"a neighbour's word", 1, 32, R"(
    st.shared.u32 [%r4], %r1;
    xor.b32 %r5, %r4, 4;
    ld.shared.u32 %r6, [%r5];)",
     "reads what thread 1 wrote, and no barrier lies between"},
    {"one word of two threads", 1, 2, "st.shared.u32 [room], %r1;",
     "writes what thread 0 wrote, and no barrier lies between"},
    {"a word that was read", 1, 64, R"(
    st.shared.u32 [%r4], %r1;
    bar.sync 0;
    xor.b32 %r5, %r4, 128;
    setp.lt.s32 %p1, %r1, 32;
    @%p1 ld.shared.u32 %r6, [%r5];
    @!%p1 st.shared.u32 [%r4], %r1;)",
     "writes what another thread or block has read"},
    {"a word that was read, behind a barrier", 1, 64, R"(
    st.shared.u32 [%r4], %r1;
    bar.sync 0;
    xor.b32 %r5, %r4, 128;
    setp.lt.s32 %p1, %r1, 32;
    @%p1 ld.shared.u32 %r6, [%r5];
    bar.sync 0;
    @!%p1 st.shared.u32 [%r4], %r1;)",
     NULL},
    {"a word of global memory", 1, 64, "st.global.u32 [%rd1], %r1;",
     "writes what thread 0 wrote, and no barrier lies between"},
    /* -- between blocks -- */
    {"a word that all blocks read", 4, 32, "ld.global.u32 %r5, [%rd1];", NULL},
    {"a word that two blocks write", 2, 1, "st.global.u32 [%rd1], %r2;",
     "writes what another block wrote"},
    {"a word that one block writes and the next reads", 2, 1, R"(
    setp.eq.s32 %p1, %r2, 0;
    @%p1 st.global.u32 [%rd1], %r2;
    @!%p1 ld.global.u32 %r5, [%rd1];)",
     "reads what another block wrote"},
    {"a word that one block reads and the next writes", 2, 1, R"(
    setp.eq.s32 %p1, %r2, 0;
    @!%p1 st.global.u32 [%rd1], %r2;
    @%p1 ld.global.u32 %r5, [%rd1];)",
     "writes what another thread or block has read"},
    {"a word that all blocks read and the last writes", 2, 1, R"(
    setp.eq.s32 %p1, %r2, 1;
    ld.global.u32 %r5, [%rd1];
    @%p1 st.global.u32 [%rd1], %r2;)",
     "writes what another thread or block has read"},
    /* -- lanes that don't come -- */
    {"paths that meet before a barrier", 1, 32, R"(
    setp.lt.s32 %p1, %r1, 16;
    @%p1 bra low;
    mov.u32 %r5, 1;
    bra.uni both;
low:
    mov.u32 %r5, 2;
both:
    bar.sync 0;)",
     NULL},
    {"a barrier on one path", 1, 32, R"(
    setp.lt.s32 %p1, %r1, 16;
    @%p1 bar.sync 0;)",
     "only lanes 0xffff of 0xffffffff have come"},
    {"a warp's barrier on one path", 1, 32, R"(
    setp.lt.s32 %p1, %r1, 16;
    @%p1 bar.warp.sync -1;)",
     "only lanes 0xffff of 0xffffffff have come"},
    {"matrices on one path", 1, 32, R"(
    setp.lt.s32 %p1, %r1, 16;
    shl.b32 %r9, %r1, 4;
    @%p1 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r9];)",
     "only lanes 0xffff of 0xffffffff have come"},
    {"a product on one path", 1, 32, R"(
    setp.lt.s32 %p1, %r1, 16;
    @%p1 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {%f1, %f2, %f3, %f4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%f1, %f2, %f3, %f4};)",
     "only lanes 0xffff of 0xffffffff have come"},
    {"an exchange", 1, 32, "shfl.sync.bfly.b32 %r5|%p1, %r1, 1, 31, -1;", NULL},
    {"an exchange on one path", 1, 32, R"(
    setp.lt.s32 %p2, %r1, 16;
    @%p2 shfl.sync.bfly.b32 %r5|%p1, %r1, 1, 31, -1;)",
     "lanes 0xffffffff exchange, and only 0xffff have come"},
    {"an exchange with a lane that is not named", 1, 32, R"(
    setp.lt.s32 %p2, %r1, 16;
    @%p2 shfl.sync.bfly.b32 %r5|%p1, %r1, 16, 31, 65535;)",
     "asks lane 16, which is not among 0xffff"},
    {"a barrier that one warp has left behind", 1, 64, R"(
    setp.lt.s32 %p1, %r1, 32;
    @%p1 ret;
    bar.sync 0;)",
     "waits, and another thread has left"},
    {"two places to wait", 1, 64, R"(
    setp.lt.s32 %p1, %r1, 32;
    @%p1 bra low;
    bar.sync 0;
    bra.uni both;
low:
    bar.sync 0;
both:)",
     "waits, and another thread elsewhere"},
    /* -- launches, and what is not known -- */
    {"a trap", 1, 1, "trap;", "trap"},
    {"the most threads", 1, 128, "", NULL},
    {"too many threads", 1, 160, "", "a GPU takes no grid of"},
    {"an unknown instruction", 1, 1, "frobnicate.u32 %r5, %r1;", "doesn't know frobnicate.u32"},
};

#define BYTES 264 /* of data: no whole number of 16 */

static void run(const trial &t, const std::string &path) {
    ptx::kernel k;
    void *data;
    cudaStream_t stream;
    ptx::read_kernel(path, "small", k);
    cudaMalloc(&data, BYTES);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMemsetAsync(data, 0, BYTES, stream);
    ptx::launch l = {&k, {t.blocks, 1, 1}, {t.threads, 1, 1}, 0, std::vector<char>(sizeof data)};
    memcpy(l.parameters.data(), &data, sizeof data);
    shim_enqueue(stream, [l] { ptx::run(l); });
    cudaStreamSynchronize(stream);
    _exit(0);
}

/* What the trial says in a process of its own, and how that ends. */
static std::string said_by(const trial &t, const std::string &path, int &status) {
    int ends[2];
    char text[4096];
    if (pipe(ends) != 0)
        return "no pipe";
    std::ofstream(path) << head << t.body << "\n    ret;\n}\n";
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        run(t, path);
    }
    close(ends[1]);
    std::string said;
    for (ssize_t n; (n = read(ends[0], text, sizeof text)) > 0;)
        said.append(text, static_cast<size_t>(n));
    close(ends[0]);
    waitpid(child, &status, 0);
    return said;
}

/* A fault in an instruction is told with the kernel, the block, the thread and the line. */
static bool as_wanted(const trial &t, const std::string &path, const std::string &said,
                      int status) {
    if (!t.says)
        return said.empty() && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    bool placed = said.find("ptx: small, block (") == 0 && said.find(path) != std::string::npos;
    bool launched = strstr(t.says, "grid") || strstr(t.says, "doesn't know");
    return said.find(t.says) != std::string::npos && (placed || launched) && WIFSIGNALED(status);
}

int main(void) {
    char folder[] = "/tmp/ptx_faults_XXXXXX";
    unsigned failed = 0;
    if (!mkdtemp(folder))
        return 1;
    std::string path = std::string(folder) + "/small.ptx";
    for (const trial &t : trials) {
        int status = 0;
        std::string said = said_by(t, path, status);
        if (as_wanted(t, path, said, status))
            continue;
        fprintf(stderr, "%s: should say \"%s\", says \"%s\", status %#x\n", t.what,
                t.says ? t.says : "", said.c_str(), static_cast<unsigned>(status));
        failed++;
    }
    unlink(path.c_str());
    rmdir(folder);
    printf("%zu kernels, %u not as they should be\n", sizeof trials / sizeof *trials, failed);
    return failed != 0;
}
