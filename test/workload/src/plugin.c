/* One half of the dlopen test: built twice, with NAME=plugin_red_work and NAME=plugin_blue_work. Nothing else differs, so
 * that both land at the same address when one replaces the other. */
#include "spin.h"

static volatile unsigned long sink;

NOINLINE void NAME(void) { sink = spin(sink, UNIT * 5); }
void plugin_run(void) { NAME(); sink++; }
