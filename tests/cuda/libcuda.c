/* A stand-in for NVIDIA's driver: its functions that are used, on the host's memory. Kernels are not run.

   It checks what it is told, as far as it can tell, writes each call to the file $CALLS, and knows what is allocated. There
   are two devices. A forked child is refused everything, as by the real one. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };
enum { LIBRARY = 0x77, KERNEL = 0x88, EVENT = 0x55, CONTEXT = 0x1000, DEVICES = 2 };

typedef int Result;

static pid_t process;
static FILE *calls;
static int allocated;
static _Thread_local uint64_t contexts[64];
static _Thread_local int depth, capture_mode;

#define CALL(...) do { if (getpid() != process) return NOT_INITIALIZED; fprintf(calls, __VA_ARGS__); fputc('\n', calls); fflush(calls); } while (0)
#define NEED(condition, error) do { if (!(condition)) return error; } while (0)

static Result init(unsigned flags)
{
    process = getpid();
    calls = fopen(getenv("CALLS"), "a");
    CALL("init %u", flags);
    return SUCCESS;
}

static Result version(int *found) { *found = 13000; return SUCCESS; }
static Result device_count(int *count) { CALL("count"); *count = DEVICES; return SUCCESS; }
static Result device_name(char *name, int room, int device) { snprintf(name, room, "stand-in %d", device); return SUCCESS; }
static Result device_memory(size_t *bytes, int device) { *bytes = (size_t)1 << 37; return SUCCESS; }

static Result device_attribute(int *value, int attribute, int device)
{
    NEED(device < DEVICES, INVALID_VALUE);
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : -1; /* 9.0, 132 multiprocessors */
    return SUCCESS;
}

static Result retain(uint64_t *context, int device) { CALL("retain %d", device); *context = CONTEXT + device; return SUCCESS; }
static Result push(uint64_t context) { CALL("push %d", (int)(context - CONTEXT)); contexts[depth++] = context; return SUCCESS; }

static Result pop(uint64_t *context)
{
    NEED(depth, INVALID_CONTEXT);
    *context = contexts[--depth];
    CALL("pop");
    return SUCCESS;
}

static Result current(int *device)
{
    NEED(getpid() == process, NOT_INITIALIZED);
    NEED(depth, INVALID_CONTEXT);
    *device = (int)(contexts[depth - 1] - CONTEXT);
    return SUCCESS;
}

static Result exchange(int *mode)
{
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    CALL("capture mode %d", capture_mode);
    return SUCCESS;
}

static Result load(uint64_t *library, const char *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m)
{
    NEED(depth && capture_mode == 2, INVALID_CONTEXT);
    NEED(!memcmp(code, "\177ELF", 4) && !n && !m, INVALID_VALUE);
    CALL("load");
    *library = LIBRARY;
    return SUCCESS;
}

static Result get_kernel(uint64_t *kernel, uint64_t library, const char *name)
{
    NEED(library == LIBRARY && strlen(name), INVALID_HANDLE);
    *kernel = KERNEL;
    return SUCCESS;
}

static Result set_attribute(int attribute, int value, uint64_t kernel, int device)
{
    NEED(kernel == KERNEL && attribute == 8, INVALID_VALUE); /* the most dynamic shared memory */
    CALL("shared %d on %d", value, device);
    return SUCCESS;
}

static Result get_function(uint64_t *function, uint64_t kernel) { *function = kernel + 1; return SUCCESS; }

static Result launch(uint64_t kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, uint64_t stream, void **arguments, void **extra)
{
    NEED(kernel == KERNEL && depth && !extra, INVALID_HANDLE);
    CALL("launch grid %u %u %u block %u %u %u shared %u stream %lx device %d arguments %lx %lx %lx", gx, gy, gz, bx, by, bz, shared,
         stream, (int)(contexts[depth - 1] - CONTEXT), *(uint64_t *)arguments[0], *(uint64_t *)arguments[1],
         *(uint64_t *)arguments[2]);
    return SUCCESS;
}

static Result allocate(uint64_t *pointer, size_t bytes, uint64_t stream)
{
    NEED(depth && bytes, INVALID_VALUE);
    *pointer = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    CALL("allocate %zu stream %lx, now %d", bytes, stream, ++allocated);
    return SUCCESS;
}

static Result release(uint64_t pointer, uint64_t stream)
{
    NEED(depth, INVALID_CONTEXT);
    free((void *)pointer);
    CALL("free stream %lx, now %d", stream, --allocated);
    return SUCCESS;
}

static Result to_device(uint64_t pointer, void *host, size_t bytes, uint64_t stream)
{
    CALL("to device %zu stream %lx", bytes, stream);
    memcpy((void *)pointer, host, bytes);
    return SUCCESS;
}

static Result to_host(void *host, uint64_t pointer, size_t bytes, uint64_t stream)
{
    CALL("to host %zu stream %lx", bytes, stream);
    memcpy(host, (void *)pointer, bytes);
    return SUCCESS;
}

static Result event_create(uint64_t *event, unsigned flags) { CALL("event %u", flags); *event = EVENT; return SUCCESS; }
static Result event_destroy(uint64_t event) { NEED(event == EVENT, INVALID_HANDLE); CALL("destroy"); return SUCCESS; }

static Result event_record(uint64_t event, uint64_t stream)
{
    NEED(event == EVENT, INVALID_HANDLE);
    CALL("record in %lx", stream);
    return SUCCESS;
}

static Result stream_wait(uint64_t stream, uint64_t event, unsigned flags)
{
    NEED(event == EVENT && !flags, INVALID_HANDLE);
    CALL("wait in %lx", stream);
    return SUCCESS;
}

static Result synchronize(uint64_t stream)
{
    CALL("synchronize %lx", stream);
    return stream == 0xBAD ? INVALID_HANDLE : SUCCESS;
}

static Result pointer_attribute(void *value, int attribute, uint64_t pointer)
{
    NEED(attribute == 9, INVALID_VALUE); /* the device's number */
    *(int *)value = 1;
    return SUCCESS;
}

static Result error_string(Result error, const char **text)
{
    static char room[32];
    snprintf(room, sizeof room, "error %d of the stand-in", error);
    *text = room;
    return SUCCESS;
}

static const struct { const char *name; void *function; } functions[] = {
    {"cuInit", init}, {"cuDriverGetVersion", version}, {"cuDeviceGetCount", device_count}, {"cuDeviceGetName", device_name},
    {"cuDeviceTotalMem", device_memory}, {"cuDeviceGetAttribute", device_attribute}, {"cuDevicePrimaryCtxRetain", retain},
    {"cuCtxPushCurrent", push}, {"cuCtxPopCurrent", pop}, {"cuCtxGetDevice", current},
    {"cuThreadExchangeStreamCaptureMode", exchange}, {"cuLibraryLoadData", load}, {"cuLibraryGetKernel", get_kernel},
    {"cuKernelSetAttribute", set_attribute}, {"cuKernelGetFunction", get_function}, {"cuLaunchKernel", launch},
    {"cuMemAllocAsync", allocate}, {"cuMemFreeAsync", release}, {"cuMemcpyHtoDAsync", to_device}, {"cuMemcpyDtoHAsync", to_host},
    {"cuEventCreate", event_create}, {"cuEventDestroy", event_destroy}, {"cuEventRecord", event_record},
    {"cuStreamWaitEvent", stream_wait}, {"cuStreamSynchronize", synchronize}, {"cuPointerGetAttribute", pointer_attribute},
    {"cuGetErrorString", error_string},
};

/* The bindings ask for every other function by its name; what is not here they find missing. */
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(functions[i].name, name)) {
            *function = functions[i].function;
            if (status) *status = 0;
            return SUCCESS;
        }
    *function = NULL;
    if (status) *status = 1;
    return NOT_FOUND;
}

Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
