/* What vgpud tells the guard: one line of text a message, over a socket that only vgpud can reach. */
#ifndef VGPU_GUARD_CONTROL_H
#define VGPU_GUARD_CONTROL_H

#include <stdbool.h>
#include <stddef.h>

#define CONTROL_PROTOCOL 4

/* Carry out one message; fd came with it (or -1) and is consumed. The answer goes to `controller`. */
void control_message(int controller, char *text, int fd);
/* True once the controller asked the guard to end. */
bool control_wants_end(void);

#endif
