// The finished probe.elf, carried along as read-only data. The assembler finds the file by its -I.
    .section .rodata.postern_probe_image, "a", @progbits
    .balign 16
    .globl postern_probe_image
    .hidden postern_probe_image
postern_probe_image:
    .incbin "probe.elf"
    .globl postern_probe_image_end
    .hidden postern_probe_image_end
postern_probe_image_end:
    .section .note.GNU-stack, "", @progbits
