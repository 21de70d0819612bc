#include "textflag.h"

// Numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl in Linux.
#define nanosleep 35
#define clone 56

// CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD and _SYSVSEM (include/uapi/linux/sched.h): a thread.
#define threadFlags 0x50f00

// Offsets into counting.
#define counter 0
#define pace 8
#define periodSec 16
#define periodNsec 24
#define sleepSec 32
#define sleepNsec 40

#define second 1000000000

// func cloneCounting(t *counting) int
//
// The thread needs no stack, and is given t for one. What it keeps between two system calls
// is in BX, which they do not change.
TEXT ·cloneCounting(SB), NOSPLIT, $0-16
	MOVQ t+0(FP), BX
	MOVQ $threadFlags, DI
	MOVQ BX, SI
	XORQ DX, DX
	XORQ R10, R10
	XORQ R8, R8
	MOVQ $clone, AX
	SYSCALL
	TESTQ AX, AX
	JZ   count
	MOVQ AX, ret+8(FP)
	RET

count:
	MOVQ counter(BX), R12
	LOCK
	INCQ (R12)

	// sleep = max(period, pace)
	MOVQ periodSec(BX), R8
	MOVQ periodNsec(BX), R9
	MOVQ pace(BX), R12
	MOVQ (R12), AX
	XORQ DX, DX
	MOVQ $second, CX
	DIVQ CX              // AX seconds, DX ns
	CMPQ AX, R8
	JLT  sleep
	JGT  slower
	CMPQ DX, R9
	JLE  sleep
slower:
	MOVQ AX, R8
	MOVQ DX, R9
sleep:
	MOVQ R8, sleepSec(BX)
	MOVQ R9, sleepNsec(BX)
	LEAQ sleepSec(BX), DI
	XORQ SI, SI
	MOVQ $nanosleep, AX
	SYSCALL
	JMP  count
