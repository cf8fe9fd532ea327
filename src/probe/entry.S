// The ways into the probe: 32-bit PVH, the 64-bit Linux boot protocol, start-up of the other processors, interrupts.

#define CODE64 0x08
#define DATA   0x10
#define CODE32 0x18

// Xen ELF note 18, PHYS32_ENTRY: a loader that finds it starts the image by the PVH protocol
// (xen/include/public/elfnote.h; the machine state is in docs/misc/pvh.pandoc).
    .section .note.Xen, "a", @note
    .align 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad ProbePvhEntry

// ------------------------------------------------------------------------------------------------
// PVH: 32-bit protected mode, flat segments, paging off, %ebx = struct hvm_start_info, no stack.
    .section .text.entry, "ax"
    .code32
    .globl ProbePvhEntry
ProbePvhEntry:
    cli
    cld
    // The tables live in .bss, which the loader has zeroed. The first 4 MiB hold the whole image; everything else is mapped
    // when it is first used (paging.h), so that starting costs a handful of instructions rather than thousands of stores.
    movl $(g_page_table_root), %eax
    movl $(g_page_table_pdpt + 3), (%eax)
    movl $(g_page_table_pd + 3), g_page_table_pdpt
    movl $0x83, g_page_table_pd
    movl $0x200083, g_page_table_pd + 8
    movl %eax, %cr3
    movl $1, %edi                       // BootProtocol::kPvh
    movl %ebx, %esi
    movl $ProbeLongMode, %ebp
    jmp EnterLongMode

// Shared by the boot processor and the others: page tables loaded into %cr3, where to go in %ebp; %edi and %esi survive.
EnterLongMode:
    movl $0x20, %eax                    // CR4.PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx              // IA32_EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80010031, %eax              // CR0: PG WP NE ET PE
    movl %eax, %cr0
    lgdt GdtPointer
    ljmp $CODE64, $1f
    .code64
1:  movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %ebp, %eax
    jmp *%rax

ProbeLongMode:
    movl $BootStackTop, %esp
    call ProbeMain
1:  cli
    hlt
    jmp 1b

// The 64-bit Linux boot protocol (ELF e_entry): long mode, identity map, %rsi = boot_params.
    .globl ProbeLinux64Entry
ProbeLinux64Entry:
    cli
    cld
    movl $g_page_table_pdpt + 3, %eax
    movq %rax, g_page_table_root
    movl $g_page_table_pd + 3, %eax
    movq %rax, g_page_table_pdpt
    movq $0x83, g_page_table_pd
    movq $0x200083, g_page_table_pd + 8
    movl $BootStackTop, %esp
    lgdt GdtPointer
    pushq $CODE64
    pushq $1f
    lretq
1:  movl $g_page_table_root, %eax
    movq %rax, %cr3
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $2, %edi                       // BootProtocol::kLinux64
    jmp ProbeLongMode

// ------------------------------------------------------------------------------------------------
// The other processors. A start-up IPI begins in real mode at vector << 12, so these bytes are copied to a page below 1 MiB
// and may refer to themselves only by offsets within it.
    .globl kApTrampoline, kApTrampolineEnd
    .code16
kApTrampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (TrampolineGdt - kApTrampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $ApProtectedMode
TrampolineGdt:
    .word GdtEnd - Gdt - 1
    .long Gdt
kApTrampolineEnd:

    .code32
ApProtectedMode:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $g_page_table_root, %eax
    movl %eax, %cr3
    movl $ApLongMode, %ebp
    jmp EnterLongMode
    .code64
ApLongMode:
    // The boot processor starts the others one by one, so one slot is enough.
    movq g_ap_stack_top, %rsp
    movl g_ap_index, %edi
    call ApMain
1:  cli
    hlt
    jmp 1b

// ------------------------------------------------------------------------------------------------
// Interrupts. A stub is a call, 8 bytes apart from the next: the return address it leaves tells the vector.
    .align 8
    .globl g_interrupt_stubs
g_interrupt_stubs:
    .rept 256
    call InterruptCommon
    .align 8
    .endr

InterruptCommon:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq %rsp, %rdi
    call OnInterrupt                    // does not come back from an exception, so no error code is in the way here
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq

// Sleeps with interrupts enabled, and comes back with them disabled. sti takes effect after the next instruction, so none can slip in
// between it and hlt and leave hlt asleep; where one does nevertheless (an emulated processor that forgot the sti when it switched to
// its host in between), OnInterrupt sees where it came and has hlt left out.
    .section .text, "ax"
    .globl SleepUntilInterrupt, g_sleep_hlt
SleepUntilInterrupt:
    sti
g_sleep_hlt:
    hlt
    cli
    ret

// ------------------------------------------------------------------------------------------------
    .section .data.gdt, "aw"
    .align 8
Gdt:
    .quad 0
    .quad 0x00af9b000000ffff            // CODE64
    .quad 0x00cf93000000ffff            // DATA
    .quad 0x00cf9b000000ffff            // CODE32
GdtEnd:
GdtPointer:
    .word GdtEnd - Gdt - 1
    .quad Gdt

    .section .bss.tables, "aw", @nobits
    .align 4096
    .globl g_page_table_root, g_page_table_pdpt, g_page_table_pd
g_page_table_root: .skip 4096
g_page_table_pdpt: .skip 4096
g_page_table_pd:   .skip 4096
    .align 16
    .skip 16384
BootStackTop:

    .section .note.GNU-stack, "", @progbits
