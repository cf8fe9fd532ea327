// SPDX-License-Identifier: GPL-2.0
/*
 * movdir64b - for test guests on a processor without MOVDIR64B: carries the instruction out.
 *
 * The processor raises an invalid-opcode exception; the kernel, which took the instruction for its own
 * (CPUID was told to say so), asks its die notifiers before it gives up. This one copies the 64 bytes in
 * quadwords, the first one last, so that whoever sees the first sees all of them. Drivers stay as they
 * are. Only the form that the kernel's own movdir64b() has: destination in RAX, source in RDX.
 */
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/uaccess.h>
#include <asm/trapnr.h>

#define LENGTH 5

static const u8 movdir64b_rax_rdx[LENGTH] = { 0x66, 0x0f, 0x38, 0xf8, 0x02 };
static atomic64_t carried_out;

static int on_die(struct notifier_block *block, unsigned long event, void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	u8 code[LENGTH];
	volatile u64 *to;
	const u64 *from;
	int i;

	if (args->trapnr != X86_TRAP_UD || user_mode(regs))
		return NOTIFY_DONE;
	if (copy_from_kernel_nofault(code, (void *)regs->ip, LENGTH) ||
	    memcmp(code, movdir64b_rax_rdx, LENGTH))
		return NOTIFY_DONE;
	to = (volatile u64 *)regs->ax;
	from = (const u64 *)regs->dx;
	for (i = 7; i >= 0; i--)
		to[i] = from[i];
	regs->ip += LENGTH;
	atomic64_inc(&carried_out);
	return NOTIFY_STOP;
}

static struct notifier_block notifier = { .notifier_call = on_die };

static int __init movdir64b_init(void)
{
	return register_die_notifier(&notifier);
}

static void __exit movdir64b_exit(void)
{
	unregister_die_notifier(&notifier);
	pr_info("movdir64b: %lld carried out\n", atomic64_read(&carried_out));
}

module_init(movdir64b_init);
module_exit(movdir64b_exit);
MODULE_DESCRIPTION("Carries out MOVDIR64B on processors without it, for tests");
MODULE_LICENSE("GPL");
