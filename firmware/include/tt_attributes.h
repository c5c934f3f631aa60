/* Where code and data are placed on the chip. On the host the marks mean nothing. */
#ifndef TT_ATTRIBUTES_H
#define TT_ATTRIBUTES_H

#if defined(__arm__)
/* A hot function: runs from ITCM, without wait states. Put it on the definition. */
#define TT_ITCM __attribute__((section(".itcm_text"), noinline))
/* The model's arena: neither loaded nor cleared, so its contents at boot are unknown. */
#define TT_ARENA __attribute__((section(".arena"), aligned(32)))
#else
#define TT_ITCM
#define TT_ARENA __attribute__((aligned(32)))
#endif

/* Stays a function of its own, so that a profile can name it. */
#define TT_NOINLINE __attribute__((noinline))

#endif
