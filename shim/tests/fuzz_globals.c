/* What replay_corpus.c brings where libFuzzer has its own main. */
#include "backend.h"

const struct backend *backend;
int gpu_count = 1;
int failures;
