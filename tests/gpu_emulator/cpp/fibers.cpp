// Runs the threads of a block as fibers of one thread of the system.
//
// A fiber runs one thread of the block after the other for as long as none of them waits, so that a
// kernel without barriers is a plain loop. A thread that waits keeps its fiber and the next thread
// begins on another one.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#else
#include <xmmintrin.h>
#endif

#include <vector>

#include "cuda_on_cpu.h"

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
unsigned lane_index;
alignas(256) unsigned char dynamic_shared[227 * 1024 + 256];

}  // namespace emulator

namespace {

using namespace emulator;

const size_t STACK = 256 * 1024;
const unsigned char GUARD = 0xa5;

#if defined(__x86_64__)
struct Context {
    void *stack_pointer;
};
extern "C" void emulator_switch(Context *from, Context *to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
void prepare(Context *context, unsigned char *stack, void (*body)()) {
    void **top = reinterpret_cast<void **>(stack + STACK) - 2;
    *top = reinterpret_cast<void *>(body);  // where `ret` goes; the stack is then aligned as after a call
    context->stack_pointer = top - 6;
}
#else
struct Context {
    ucontext_t context;
};
void emulator_switch(Context *from, Context *to) { swapcontext(&from->context, &to->context); }
void prepare(Context *context, unsigned char *stack, void (*body)()) {
    getcontext(&context->context);
    context->context.uc_stack.ss_sp = stack;
    context->context.uc_stack.ss_size = STACK;
    context->context.uc_link = nullptr;
    makecontext(&context->context, body, 0);
}
#endif

struct Fiber {
    Context context;
    unsigned char *stack;
};

enum State { READY, AT_BARRIER, IN_WARP, DONE };

struct Thread {
    uint3 index;
    State state;
    Fiber *fiber;
    int predicate, line;    // of the barrier it waits at
    Operation operation;    // of the exchange it waits in
    unsigned mask, source;
    uint64_t value, result;
};

struct Launch {
    void (*call)(void **);
    void **arguments;
    int order;  // 0: threads and blocks in order, 1: last first
};

std::vector<Fiber *> all_fibers, free_fibers;
std::vector<Thread> threads;
std::vector<unsigned> ready;  // a queue: taken from `ready_first`
size_t ready_first;
unsigned started, finished, at_barrier, in_warp, current;
int barrier_count;
Launch launch;
Context scheduler;
char *message;
size_t message_size;
sigjmp_buf failed;

// The fibers of a failed launch are left as they stand; the next launch begins them anew.
[[noreturn]] void give_up() { siglongjmp(failed, 1); }

void enter(unsigned number) {
    current = number;
    thread_index = threads[number].index;
    lane_index = number % 32;
}

void wake(unsigned number) {
    threads[number].state = READY;
    if (number != current) ready.push_back(number);
}

void wait(State state) {
    Thread &thread = threads[current];
    thread.state = state;
    emulator_switch(&thread.fiber->context, &scheduler);
}

// All threads that still run have arrived: threads that have returned do not count.
void release_barrier() {
    if (at_barrier == 0 || at_barrier + finished < threads.size()) return;
    barrier_count = 0;
    int line = 0;
    for (const Thread &thread : threads) {
        if (thread.state != AT_BARRIER) continue;
        if (line != 0 && thread.line != line)
            fail("threads of a block wait at different __syncthreads: lines %d and %d", line,
                 thread.line);
        line = thread.line;
        barrier_count += thread.predicate;
    }
    at_barrier = 0;
    for (unsigned i = 0; i < threads.size(); i++)
        if (threads[i].state == AT_BARRIER) wake(i);
}

unsigned alive(unsigned first) {
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < threads.size(); lane++)
        if (threads[first + lane].state != DONE) mask |= 1u << lane;
    return mask;
}

const uint64_t POISON = ~0ull;  // what a lane reads from one that takes no part: a NaN

uint64_t combine(Operation operation, uint64_t a, uint64_t b) {
    switch (operation) {
        case ADD: return a + b;
        case MINIMUM: return (int64_t)a < (int64_t)b ? a : b;
        case MAXIMUM: return (int64_t)a > (int64_t)b ? a : b;
        case AND: return a & b;
        case OR: return a | b;
        default: return a ^ b;
    }
}

// Completes the exchange of the lanes in `mask` if all that still run are in it.
void release_warp(unsigned first, unsigned mask, Operation operation) {
    unsigned taking_part = mask & alive(first);
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(taking_part >> lane & 1)) continue;
        const Thread &thread = threads[first + lane];
        if (thread.state != IN_WARP) return;
        if (thread.mask != mask || thread.operation != operation)
            fail("lanes of one mask are in different warp functions or name different masks: "
                 "0x%08x and 0x%08x", mask, thread.mask);
    }
    uint64_t together = 0;
    bool begun = false;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(taking_part >> lane & 1)) continue;
        uint64_t value = threads[first + lane].value;
        if (operation == BALLOT) {
            together |= value << lane;
        } else if (operation >= ADD) {
            together = begun ? combine(operation, together, value) : value;
            begun = true;
        }
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(taking_part >> lane & 1)) continue;
        Thread &thread = threads[first + lane];
        thread.result = together;
        if (operation == SHUFFLE)
            thread.result = taking_part >> thread.source & 1 ? threads[first + thread.source].value
                                                             : POISON;
        if (operation == MATCH)
            for (unsigned other = 0; other < 32; other++)
                if ((taking_part >> other & 1) && threads[first + other].value == thread.value)
                    thread.result |= 1ull << other;
    }
    for (unsigned lane = 0; lane < 32; lane++)
        if (taking_part >> lane & 1) wake(first + lane), in_warp--;
}

void finish(unsigned number) {
    threads[number].state = DONE;
    finished++;
    release_barrier();
    if (in_warp == 0) return;
    unsigned first = number & ~31u;
    for (unsigned lane = 0; lane < 32 && first + lane < threads.size(); lane++) {
        const Thread &thread = threads[first + lane];
        if (thread.state == IN_WARP && (thread.mask >> (number % 32) & 1))
            release_warp(first, thread.mask, thread.operation);
    }
}

unsigned next_thread() {
    unsigned turn = started++;
    return launch.order == 0 ? turn : (unsigned)threads.size() - 1 - turn;
}

Fiber *begun_fiber;

void fiber_body() {
    for (;;) {
        Fiber *self = begun_fiber;
        while (started < threads.size() && ready_first == ready.size()) {
            unsigned number = next_thread();
            enter(number);
            threads[number].fiber = self;
            launch.call(launch.arguments);
            finish(number);
        }
        free_fibers.push_back(self);
        emulator_switch(&self->context, &scheduler);
    }
}

Fiber *take_fiber() {
    if (free_fibers.empty()) {
        Fiber *fiber = new Fiber;
        fiber->stack = static_cast<unsigned char *>(
            mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (fiber->stack == MAP_FAILED) fail("no memory for the stack of a thread");
        prepare(&fiber->context, fiber->stack, fiber_body);
        all_fibers.push_back(fiber);
        return fiber;
    }
    Fiber *fiber = free_fibers.back();
    free_fibers.pop_back();
    return fiber;
}

void run_block() {
    started = finished = at_barrier = in_warp = 0;
    ready.clear();
    ready_first = 0;
    for (unsigned z = 0, i = 0; z < block_size.z; z++)
        for (unsigned y = 0; y < block_size.y; y++)
            for (unsigned x = 0; x < block_size.x; x++, i++) {
                threads[i].index = {x, y, z};
                threads[i].state = READY;
            }
    while (finished < threads.size()) {
        if (ready_first < ready.size()) {
            unsigned number = ready[ready_first++];
            if (ready_first == ready.size()) {
                ready.clear();
                ready_first = 0;
            }
            enter(number);
            emulator_switch(&scheduler, &threads[number].fiber->context);
        } else if (started < threads.size()) {
            begun_fiber = take_fiber();
            emulator_switch(&scheduler, &begun_fiber->context);
        } else {
            fail("deadlock in a block: %u threads wait at __syncthreads, %u have returned, %u wait in "
                 "warp functions for lanes of their masks that never come",
                 at_barrier, finished, (unsigned)threads.size() - finished - at_barrier);
        }
    }
}

void on_signal(int signal, siginfo_t *information, void *) {
    if (signal == SIGFPE)
        snprintf(message, message_size, "integer division by zero");
    else
        snprintf(message, message_size, "illegal address 0x%llx",
                 (unsigned long long)(uintptr_t)information->si_addr);
    give_up();
}

}  // namespace

namespace emulator {

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, message_size, format, values);
    va_end(values);
    give_up();
}

int barrier(int predicate, int line) {
    Thread &thread = threads[current];
    thread.predicate = predicate;
    thread.line = line;
    thread.state = AT_BARRIER;
    at_barrier++;
    release_barrier();
    if (thread.state == AT_BARRIER) wait(AT_BARRIER);
    return barrier_count;
}

uint64_t exchange(Operation operation, unsigned mask, uint64_t value, unsigned source) {
    Thread &thread = threads[current];
    if (!(mask >> lane_index & 1))
        fail("lane %u calls a warp function with mask 0x%08x, which does not name it", lane_index,
             mask);
    thread.operation = operation;
    thread.mask = mask;
    thread.value = value;
    thread.source = source & 31;
    thread.state = IN_WARP;
    in_warp++;
    release_warp(current & ~31u, mask, operation);
    if (thread.state == IN_WARP) wait(IN_WARP);
    return thread.result;
}

unsigned lanes_alive() { return alive(current & ~31u); }

}  // namespace emulator

struct Range {
    unsigned char *address;
    size_t size;
};

// Runs a kernel; 0, or 1 and why it failed in `text`. `shared` are the static shared arrays of the
// library: they are filled with NaNs before every block, since nothing clears them on a device.
extern "C" int emulator_launch(void (*call)(void **), void **arguments, const unsigned *shape,
                               unsigned dynamic_size, int order, const Range *shared,
                               int shared_count, char *text, size_t text_size) {
    message = text;
    message_size = text_size;
    launch = {call, arguments, order};
    grid_size = dim3(shape[0], shape[1], shape[2]);
    block_size = dim3(shape[3], shape[4], shape[5]);
    threads.assign((size_t)shape[3] * shape[4] * shape[5], Thread());
    free_fibers = all_fibers;

    struct sigaction action, old[3];
    const int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old[i]);
#if defined(__x86_64__)
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);  // CuPy compiles with -ftz=true: float32 denormals are zero
#endif
    volatile int result = 1;
    if (sigsetjmp(failed, 0) == 0) {
        const unsigned long long blocks = (unsigned long long)shape[0] * shape[1] * shape[2];
        for (unsigned long long turn = 0; turn < blocks; turn++) {
            unsigned long long i = order == 0 ? turn : blocks - 1 - turn;
            block_index = {(unsigned)(i % shape[0]), (unsigned)(i / shape[0] % shape[1]),
                           (unsigned)(i / shape[0] / shape[1])};
            for (int s = 0; s < shared_count; s++) memset(shared[s].address, 0xff, shared[s].size);
            memset(dynamic_shared, 0xff, dynamic_size);
            memset(dynamic_shared + dynamic_size, GUARD, 256);
            run_block();
            for (int g = 0; g < 256; g++)
                if (dynamic_shared[dynamic_size + g] != GUARD)
                    fail("wrote %d bytes behind the dynamic shared memory of %u bytes", g + 1,
                         dynamic_size);
        }
        result = 0;
    } else {
        // Fibers that were left in the middle of a kernel begin anew.
        for (Fiber *fiber : all_fibers) prepare(&fiber->context, fiber->stack, fiber_body);
    }
#if defined(__x86_64__)
    _mm_setcsr(control);
#endif
    for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
    return result;
}

// What the -fsanitize options of compiler.py call.
struct Place {
    const char *file;
    unsigned line, column;
};
struct Mismatch {
    Place place;
    void *type;
    unsigned char log_alignment, kind;
};
extern "C" {
void __ubsan_handle_type_mismatch_v1(Mismatch *data, uintptr_t address) {
    if (address == 0) fail("line %u: null pointer", data->place.line);
    fail("line %u: misaligned address 0x%llx: needs a multiple of %u bytes", data->place.line,
         (unsigned long long)address, 1u << data->log_alignment);
}
void __ubsan_handle_out_of_bounds(Place *place, uintptr_t index) {
    fail("line %u: index %lld is outside of the array", place->line, (long long)index);
}
void __ubsan_handle_divrem_overflow(Place *place, uintptr_t, uintptr_t) {
    fail("line %u: integer division by zero", place->line);
}
void __ubsan_handle_shift_out_of_bounds(Place *place, uintptr_t, uintptr_t) {
    fail("line %u: shift by a negative number or by more bits than the type has", place->line);
}
}
