/*
 * `hold-device-filter` attaches a program that allows every device to the cgroup of the guest's own
 * services. The kernel patches its code when the first such program comes and when the last one
 * goes; with this one, both happen while one processor runs (see the initramfs' script). Exits with
 * 1 where the kernel refuses.
 *
 * x86-64 only, in assembly because the initramfs has no interpreter but BusyBox. Numbers are those
 * of the kernel's <asm/unistd_64.h> and <linux/bpf.h>; the two attributes are of bpf(2).
 */
        .set SYS_OPEN, 2
        .set SYS_EXIT, 60
        .set SYS_BPF, 321
        .set O_DIRECTORY_CLOEXEC, 0x90000
        .set BPF_PROG_LOAD, 5
        .set BPF_PROG_ATTACH, 8
        .set BPF_PROG_TYPE_CGROUP_DEVICE, 15
        .set BPF_CGROUP_DEVICE, 6

        .text
        .globl _start
_start:
        movl    $SYS_BPF, %eax
        movl    $BPF_PROG_LOAD, %edi
        movl    $load, %esi
        movl    $(load_end - load), %edx
        syscall
        testl   %eax, %eax
        js      refused
        movl    %eax, attach_program

        movl    $SYS_OPEN, %eax
        movl    $cgroup, %edi
        movl    $O_DIRECTORY_CLOEXEC, %esi
        syscall
        testl   %eax, %eax
        js      refused
        movl    %eax, attach_cgroup

        movl    $SYS_BPF, %eax
        movl    $BPF_PROG_ATTACH, %edi
        movl    $attach, %esi
        movl    $(attach_end - attach), %edx
        syscall
        testl   %eax, %eax
        js      refused
        xorl    %edi, %edi
        jmp     exit
refused:
        movl    $1, %edi
exit:
        movl    $SYS_EXIT, %eax
        syscall

        .data
        .balign 8
program: /* r0 = 1 (allowed); exit */
        .byte   0xb7, 0
        .short  0
        .long   1
        .byte   0x95, 0
        .short  0
        .long   0
program_end:
load:
        .long   BPF_PROG_TYPE_CGROUP_DEVICE
        .long   (program_end - program) / 8
        .quad   program
        .quad   licence
load_end:
attach:
attach_cgroup:
        .long   0
attach_program:
        .long   0
        .long   BPF_CGROUP_DEVICE
        .long   0
attach_end:
licence:
        .asciz  "Apache-2.0"
cgroup:
        .asciz  "/sys/fs/cgroup/init"

        .section .note.GNU-stack, "", @progbits
