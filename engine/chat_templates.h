/* The table of chat templates. A format is text with places in braces: {c} the message, {s} a system
 * message that waits for the first user turn, {bos}, {eos}, {date}. */
#ifndef GATETAPE_CHAT_TEMPLATES_H
#define GATETAPE_CHAT_TEMPLATES_H
#include <stdbool.h>

typedef struct {
    const char *name;
    const char *bos, *eos;      /* where the caller names none */
    const char *opening;        /* before all turns */
    const char *system, *user;  /* a turn; NULL: that role is refused */
    const char *assistant;      /* a turn that others follow */
    const char *last_assistant; /* the last one when no prompt for another follows; NULL: like the others */
    const char *generation;     /* the begin of an assistant's turn */
    const char *reply;          /* what comes after it, to the end token */
    const char *default_system; /* said where the first message is not a system message; NULL: nothing */
    bool system_only_first, alternates; /* orders that are refused */
    bool thinks;                        /* Qwen3's think blocks */
} ChatTemplate;

extern const ChatTemplate chat_templates[];
extern const int n_chat_templates;

#endif
