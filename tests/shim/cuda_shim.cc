/* cuda_shim.cc - CUDA threads as fibers of one host thread: see cuda_shim.h. */
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define STACK_BYTES ((size_t)1 << 20)
#else
#define STACK_BYTES ((size_t)256 << 10)
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* -- contexts ---------------------------------------------------------------------------------- */

static void fiber_main();

#if defined(__x86_64__)
struct context {
    void *stack_pointer;
};

/* swapcontext asks the kernel for the signal mask, which costs more than most fibers run. */
extern "C" void shim_switch(void **from, void *to);
asm(".text\n"
    ".globl shim_switch\n"
    ".type shim_switch, @function\n"
    "shim_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
    "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n"
    "    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size shim_switch, .-shim_switch\n");

static void switch_context(context *from, context *to) {
    shim_switch(&from->stack_pointer, to->stack_pointer);
}

static void make_context(context *c, char *stack) {
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    *--top = NULL; /* fiber_main's return address: it never returns; and 16-byte alignment */
    *--top = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    c->stack_pointer = top;
}
#else
typedef ucontext_t context;

static void switch_context(context *from, context *to) {
    swapcontext(from, to);
}

static void make_context(context *c, char *stack) {
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = STACK_BYTES;
    c->uc_link = NULL;
    makecontext(c, fiber_main, 0);
}
#endif

/* -- threads ----------------------------------------------------------------------------------- */

enum state { NOT_STARTED, READY, AT_BARRIER, AT_EXCHANGE, LEFT };

struct fiber {
    enum state state;
    char *stack;
    uint3 index;
    context self;
    shim_place place; /* where it waits */
    unsigned mask, source;
    const void *value;
    void *result;
    size_t bytes;
    bool gathers; /* gets all lanes' values instead of one's */
};

static std::vector<fiber> fibers;          /* of the block that runs */
static std::vector<unsigned> warps, lanes; /* in the order of their turns */
static std::vector<char *> stacks;         /* not in use; what has just been used is last */
static fiber *now;
static context scheduler;
static const std::function<void()> *thread_body;
static void *shared_memory;

#if defined(__SANITIZE_ADDRESS__)
static const void *scheduler_stack;
static size_t scheduler_stack_bytes;
#endif

void shim_fault(const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "cuda shim: block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

void *shim_shared(void) {
    return shared_memory;
}

static void enter(fiber *f) {
    now = f;
    threadIdx = f->index;
#if defined(__SANITIZE_ADDRESS__)
    void *fake;
    __sanitizer_start_switch_fiber(&fake, f->stack, STACK_BYTES);
    switch_context(&scheduler, &f->self);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    switch_context(&scheduler, &f->self);
#endif
}

static void leave() {
    fiber *f = now;
#if defined(__SANITIZE_ADDRESS__)
    void *fake;
    __sanitizer_start_switch_fiber(f->state == LEFT ? NULL : &fake, scheduler_stack,
                                   scheduler_stack_bytes);
    switch_context(&f->self, &scheduler);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_bytes);
#else
    switch_context(&f->self, &scheduler);
#endif
}

static void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, &scheduler_stack, &scheduler_stack_bytes);
#endif
    (*thread_body)();
    now->state = LEFT;
    leave();
    abort();
}

static char *take_stack() {
    if (stacks.empty()) {
        void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED)
            shim_fault("no memory for stacks");
        return static_cast<char *>(stack);
    }
    char *stack = stacks.back();
    stacks.pop_back();
    return stack;
}

/* -- barriers and exchanges -------------------------------------------------------------------- */

static void wait_as(enum state state, shim_place place) {
    now->state = state;
    now->place = place;
    leave();
}

void shim_barrier(shim_place place) {
    wait_as(AT_BARRIER, place);
}

static bool same_place(shim_place a, shim_place b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

/* Hands out the values once every lane of the mask is there; mostly lane 31 is the last to come. */
static void complete_exchange(fiber *warp, unsigned width) {
    unsigned mask = now->mask;
    for (unsigned i = width; i-- > 0;) {
        if (!(mask >> i & 1))
            continue;
        if (warp[i].state != AT_EXCHANGE)
            return;
        if (warp[i].mask != mask || !same_place(warp[i].place, now->place))
            shim_fault("lanes of one warp exchange at %s:%d, mask %#x, and at %s:%d, mask %#x",
                       now->place.file, now->place.line, mask, warp[i].place.file,
                       warp[i].place.line, warp[i].mask);
    }
    static std::vector<char> all; /* what a gather hands out */
    all.resize(now->gathers ? width * now->bytes : 0);
    for (size_t at = 0; at < all.size(); at += now->bytes)
        memcpy(&all[at], warp[at / now->bytes].value, now->bytes);
    for (unsigned i = 0; i < width; i++) {
        fiber *f = &warp[i];
        if (!(mask >> i & 1))
            continue;
        if (!f->gathers && (f->source >= width || !(mask >> f->source & 1)))
            shim_fault("%s:%d: lane %u asks lane %u, which isn't there", f->place.file,
                       f->place.line, i, f->source);
        if (f->gathers)
            memcpy(f->result, all.data(), all.size());
        else
            memcpy(f->result, warp[f->source].value, f->bytes);
        f->state = READY;
    }
}

static void exchange(unsigned mask, const void *value, void *result, size_t bytes, unsigned source,
                     bool gathers, shim_place place) {
    unsigned self = static_cast<unsigned>(now - fibers.data()), first = self / 32 * 32;
    unsigned width = static_cast<unsigned>(fibers.size()) - first;
    width = width < 32 ? width : 32;
    if (!(mask >> (self - first) & 1))
        shim_fault("%s:%d: lane %u isn't in its own mask %#x", place.file, place.line, self - first,
                   mask);
    now->mask = width < 32 ? mask & ((1u << width) - 1) : mask;
    now->source = source;
    now->value = value;
    now->result = result;
    now->bytes = bytes;
    now->gathers = gathers;
    now->state = AT_EXCHANGE;
    now->place = place;
    complete_exchange(&fibers[first], width);
    if (now->state == AT_EXCHANGE)
        leave();
}

void shim_exchange(unsigned mask, const void *value, void *result, size_t bytes, unsigned source,
                   shim_place place) {
    exchange(mask, value, result, bytes, source, false, place);
}

void shim_gather(const void *value, void *all, size_t bytes, shim_place place) {
    exchange(0xffffffffu, value, all, bytes, 0, true, place);
}

/* -- asynchronous copies ----------------------------------------------------------------------- */

struct pending_copy {
    void *to;
    const void *from;
    int bytes;
};
static std::vector<pending_copy> pending_copies[1024]; /* a thread's */

static bool copies_are_early() {
    const char *text = getenv("MM_SHIM_COPIES");
    if (text && strcmp(text, "early") != 0 && strcmp(text, "late") != 0)
        shim_fault("MM_SHIM_COPIES is %s, not early or late", text);
    return text && strcmp(text, "early") == 0;
}

static void land(const pending_copy &c) {
    if (c.from)
        memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
    else
        memset(c.to, 0, static_cast<size_t>(c.bytes));
}

void shim_copy_begin(void *to, const void *from, int bytes) {
    static const bool early = copies_are_early();
    uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (places % static_cast<uintptr_t>(bytes))
        shim_fault("a copy of %d bytes from %p to %p", bytes, from, to);
    if (early)
        land({to, from, bytes});
    else
        pending_copies[threadIdx.x].push_back({to, from, bytes});
}

void shim_copies_wait(void) {
    for (const pending_copy &c : pending_copies[threadIdx.x])
        land(c);
    pending_copies[threadIdx.x].clear();
}

/* -- blocks ------------------------------------------------------------------------------------ */

enum { ASCENDING, DESCENDING, RANDOM };
static uint64_t seed = 1;

static int chosen_order() {
    const char *text = getenv("MM_SHIM_ORDER");
    if (!text || strcmp(text, "ascending") == 0)
        return ASCENDING;
    if (strcmp(text, "descending") == 0)
        return DESCENDING;
    if (strncmp(text, "random:", 7) != 0)
        shim_fault("MM_SHIM_ORDER is %s, not ascending, descending or random:SEED", text);
    seed = strtoull(text + 7, NULL, 10) * 2 + 1;
    return RANDOM;
}

static void put_in_order(std::vector<unsigned> &list, size_t n) {
    static const int kind = chosen_order();
    list.resize(n);
    for (size_t i = 0; i < n; i++)
        list[i] = static_cast<unsigned>(kind == DESCENDING ? n - 1 - i : i);
    for (size_t i = n; kind == RANDOM && i > 1; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        std::swap(list[i - 1], list[(seed >> 33) % i]);
    }
}

static bool run_thread(fiber *f) {
    if (f->state == NOT_STARTED) {
        f->stack = take_stack();
        make_context(&f->self, f->stack);
        f->state = READY;
    }
    if (f->state != READY)
        return false;
    enter(f);
    if (f->state == LEFT)
        stacks.push_back(f->stack);
    return true;
}

/* Each warp goes as far as it can before the next one starts, exchanges and all: so that a warp
 * that a barrier should have held is far ahead of the others. */
static void run_warps() {
    put_in_order(warps, (fibers.size() + 31) / 32);
    for (unsigned warp : warps) {
        size_t first = 32 * static_cast<size_t>(warp), count = fibers.size() - first;
        bool ran = true;
        put_in_order(lanes, count < 32 ? count : 32);
        while (ran) {
            ran = false;
            for (unsigned lane : lanes)
                ran |= run_thread(&fibers[first + lane]);
        }
    }
}

/* All wait for the barrier: they go on. All have left: false. Else the block is stuck. */
static bool pass_barrier() {
    size_t left = 0;
    const fiber *waits = NULL;
    for (const fiber &f : fibers)
        if (f.state == LEFT)
            left++;
        else
            waits = &f;
    if (!waits)
        return false;
    if (left > 0)
        shim_fault("a thread waits at %s:%d, but %zu of %zu have left", waits->place.file,
                   waits->place.line, left, fibers.size());
    for (fiber &f : fibers) {
        if (f.state != AT_BARRIER || !same_place(f.place, waits->place))
            shim_fault("thread %u waits at %s:%d, another at %s:%d", f.index.x, f.place.file,
                       f.place.line, waits->place.file, waits->place.line);
        f.state = READY;
    }
    return true;
}

static void run_block(size_t threads, size_t shared_bytes) {
    fibers.resize(threads);
    for (size_t i = 0; i < threads; i++) {
        unsigned t = static_cast<unsigned>(i);
        fibers[i].state = NOT_STARTED;
        fibers[i].index = {t % blockDim.x, t / blockDim.x % blockDim.y,
                           t / blockDim.x / blockDim.y};
    }
    if (shared_bytes)
        memset(shared_memory, 0xff, shared_bytes);
    do
        run_warps();
    while (pass_barrier());
}

static void run_grid(dim3 grid, dim3 block, size_t shared_bytes,
                     const std::function<void()> &thread) {
    static std::vector<unsigned> blocks;
    gridDim = grid;
    blockDim = block;
    thread_body = &thread;
    /* Of its exact size, so that AddressSanitizer sees its end. */
    if (shared_bytes && posix_memalign(&shared_memory, 128, shared_bytes) != 0)
        shim_fault("no memory");
    put_in_order(blocks, static_cast<size_t>(grid.x) * grid.y * grid.z);
    for (unsigned i : blocks) {
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block(static_cast<size_t>(block.x) * block.y * block.z, shared_bytes);
    }
    if (shared_bytes)
        free(shared_memory);
    shared_memory = NULL;
}

void shim_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                 std::function<void()> thread) {
    size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        !threads || threads > 1024 || shared_bytes > 227 * 1024)
        shim_fault("a GPU takes no grid of %u x %u x %u blocks of %zu threads, %zu bytes", grid.x,
                   grid.y, grid.z, threads, shared_bytes);
    shim_enqueue(stream, [=] { run_grid(grid, block, shared_bytes, thread); });
}
