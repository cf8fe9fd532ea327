// The finished probe.elf, carried along as read-only data. The assembler finds the file by its -I.
    .section .rodata.kPosternProbeImage, "a", @progbits
    .balign 16
    .globl kPosternProbeImage
    .hidden kPosternProbeImage
kPosternProbeImage:
    .incbin "probe.elf"
    .globl kPosternProbeImageEnd
    .hidden kPosternProbeImageEnd
kPosternProbeImageEnd:
    .section .note.GNU-stack, "", @progbits
