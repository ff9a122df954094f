/*
 * render COUNT: OpenGL without a window. Takes up to COUNT buffers of 64 MiB, has the GPU clear each, and says what it
 * got: {"renderer", "bytes", "error", "cleared"}. Waits for a line before it ends. Needs libEGL when it runs, nothing
 * of OpenGL when it is built.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* From the Khronos registry: egl.xml, gl.xml. */
enum { EGL_PLATFORM_DEVICE = 0x313f, EGL_OPENGL_API = 0x30a2, EGL_NONE = 0x3038, EGL_SURFACE_TYPE = 0x3033 };
enum { EGL_PBUFFER_BIT = 1, EGL_RENDERABLE_TYPE = 0x3040, EGL_OPENGL_BIT = 8 };
enum { GL_RENDERER = 0x1f01, GL_ARRAY_BUFFER = 0x8892, GL_STATIC_DRAW = 0x88e4, GL_R32UI = 0x8236 };
enum { GL_RED_INTEGER = 0x8d94, GL_UNSIGNED_INT = 0x1405, MAX_BUFFERS = 4096 };
#define SIZE (64ll << 20)

static void *(*find)(const char *name);

static void *need(const char *name)
{
    void *function = find(name);
    if (!function) {
        fprintf(stderr, "no %s\n", name);
        exit(2);
    }
    return function;
}

static void check(intptr_t good, const char *what)
{
    if (!good) {
        int (*error)(void) = (int (*)(void))need("eglGetError");
        fprintf(stderr, "%s: EGL error 0x%x\n", what, (unsigned)error());
        exit(2);
    }
}

static void make_context(void *egl)
{
    *(void **)&find = dlsym(egl, "eglGetProcAddress");
    unsigned (*query)(int, void **, int *) = (unsigned (*)(int, void **, int *))need("eglQueryDevicesEXT");
    void *(*display_of)(int, void *,
                        const int *) = (void *(*)(int, void *, const int *))need("eglGetPlatformDisplayEXT");
    unsigned (*initialize)(void *, int *, int *) = (unsigned (*)(void *, int *, int *))need("eglInitialize");
    unsigned (*bind)(unsigned) = (unsigned (*)(unsigned))need("eglBindAPI");
    unsigned (*choose)(void *, const int *, void **, int,
                       int *) = (unsigned (*)(void *, const int *, void **, int, int *))need("eglChooseConfig");
    void *(*create)(void *, void *, void *,
                    const int *) = (void *(*)(void *, void *, void *, const int *))need("eglCreateContext");
    unsigned (*make_current)(void *, void *, void *,
                             void *) = (unsigned (*)(void *, void *, void *, void *))need("eglMakeCurrent");
    const int wanted[] = {EGL_SURFACE_TYPE, EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE, EGL_OPENGL_BIT, EGL_NONE};
    void *device, *config;
    int count = 0;

    check(query(1, &device, &count) && count, "eglQueryDevicesEXT");
    void *display = display_of(EGL_PLATFORM_DEVICE, device, NULL);
    check((intptr_t)display, "eglGetPlatformDisplayEXT");
    check(initialize(display, NULL, NULL), "eglInitialize");
    check(bind(EGL_OPENGL_API), "eglBindAPI");
    check(choose(display, wanted, &config, 1, &count) && count, "eglChooseConfig");
    void *context = create(display, config, NULL, NULL);
    check((intptr_t)context, "eglCreateContext");
    check(make_current(display, NULL, NULL, context), "eglMakeCurrent");
}

int main(int argc, char **argv)
{
    void *egl = dlopen("libEGL.so.1", RTLD_NOW);
    if (!egl) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    make_context(egl);
    const char *(*get_string)(unsigned) = (const char *(*)(unsigned))need("glGetString");
    void (*gen)(int, unsigned *) = (void (*)(int, unsigned *))need("glGenBuffers");
    void (*bind)(unsigned, unsigned) = (void (*)(unsigned, unsigned))need("glBindBuffer");
    void (*data)(unsigned, intptr_t, const void *,
                 unsigned) = (void (*)(unsigned, intptr_t, const void *, unsigned))need("glBufferData");
    void (*clear)(unsigned, unsigned, unsigned, unsigned, const void *) = (void (*)(
        unsigned, unsigned, unsigned, unsigned, const void *))need("glClearBufferData");
    void (*read)(unsigned, intptr_t, intptr_t,
                 void *) = (void (*)(unsigned, intptr_t, intptr_t, void *))need("glGetBufferSubData");
    void (*finish)(void) = (void (*)(void))need("glFinish");
    unsigned (*error)(void) = (unsigned (*)(void))need("glGetError");
    static unsigned buffers[MAX_BUFFERS];
    unsigned failed = 0, good = 0;
    int count = 0, most = argc > 1 ? atoi(argv[1]) : 1;

    for (; count < most && count < MAX_BUFFERS && !failed; count++) {
        const uint32_t value = (uint32_t)count + 1;
        gen(1, &buffers[count]);
        bind(GL_ARRAY_BUFFER, buffers[count]);
        data(GL_ARRAY_BUFFER, SIZE, NULL, GL_STATIC_DRAW);
        failed = error();
        if (failed)
            break;
        clear(GL_ARRAY_BUFFER, GL_R32UI, GL_RED_INTEGER, GL_UNSIGNED_INT, &value);
        finish();
        failed = error();
    }
    for (int i = 0; i < count; i++) {
        uint32_t seen = 0;
        bind(GL_ARRAY_BUFFER, buffers[i]);
        read(GL_ARRAY_BUFFER, SIZE - (intptr_t)sizeof seen, sizeof seen, &seen);
        good += seen == (uint32_t)i + 1;
    }
    printf("{\"renderer\": \"%s\", \"bytes\": %lld, \"error\": %u, \"cleared\": %u}\n", get_string(GL_RENDERER),
           count * SIZE, failed, good);
    fflush(stdout);
    return getchar() == EOF;
}
