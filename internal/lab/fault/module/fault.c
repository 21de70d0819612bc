// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * A module that has the kernel fail in one of the ways that kernels do: insmod fault.ko
 * way=panic, and so on, as the list below says. What it can be told follows LKDTM
 * (Documentation/fault-injection/provoke-crashes.rst), which Debian's kernels are built
 * without.
 */
#include <linux/bug.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/irq_work.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *way = "";
module_param(way, charp, 0);

static DEFINE_SPINLOCK(lock);

static void spin(void *unused)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

static void die_panic(void)
{
	panic("fault: asked for");
}

static void die_oops(void)
{
	*(volatile int *)8 = 1;
}

static void oops_here(struct irq_work *unused)
{
	die_oops();
}

static DEFINE_IRQ_WORK(in_interrupt, oops_here);

/* In an interrupt that this CPU sends itself. */
static void die_oops_irq(void)
{
	irq_work_queue(&in_interrupt);
}

static void die_bug(void)
{
	BUG();
}

static int noinline deep(volatile char *from)
{
	volatile char here[512];

	here[0] = from[0] + 1;
	return deep(here) + here[1];
}

static void die_stack(void)
{
	char here = 0;

	deep(&here);
}

/* All CPUs with their interrupts off. */
static void hang_all(void)
{
	on_each_cpu(spin, NULL, 0);
}

/* This one with its interrupts off. */
static void hang_one(void)
{
	spin(NULL);
}

/* This one in a loop of the kernel, interrupts on. */
static void hang_loop(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
}

/* This one at a lock that it holds itself. */
static void hang_lock(void)
{
	unsigned long flags, again;

	spin_lock_irqsave(&lock, flags);
	spin_lock_irqsave(&lock, again);
}

static const struct {
	const char *name;
	void (*do_it)(void);
} ways[] = {
	{ "panic", die_panic },	    { "oops", die_oops },	  { "bug", die_bug },
	{ "stack", die_stack },	    { "hang-all", hang_all }, { "hang-one", hang_one },
	{ "hang-loop", hang_loop }, { "hang-lock", hang_lock },
	{ "oops-irq", die_oops_irq },
};

/* In a thread of its own, so that insmod has ended by then. */
static int fail(void *n)
{
	msleep(1000);
	ways[(long)n].do_it();
	return 0;
}

static int __init fault_init(void)
{
	long n;

	for (n = 0; n < ARRAY_SIZE(ways); n++)
		if (!strcmp(way, ways[n].name))
			return PTR_ERR_OR_ZERO(kthread_run(fail, (void *)n, "fault"));
	return -EINVAL;
}
module_init(fault_init);

MODULE_DESCRIPTION("Has the kernel fail in a way that one names");
MODULE_LICENSE("Dual MIT/GPL");
