# The guest: a boot sector that writes numbered sectors to its disks for ever, reads back what it wrote
# and what its template held, and reports on the serial port. Being able to boot means that the chain
# can be read.
#
#   as --32 -o guest.o guest.S && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.bin guest.o
#
# Write number n goes to the same sector of every disk that is written to; `disk.rs` knows the layout
# and what each sector must hold.

	.intel_syntax noprefix
	.code16
	.text
	.global _start

	.set TEMPLATE, 2048		# first stamped sector of the template
	.set WRITES, 14336		# first sector that is written to
	.set SPAN, 8192			# number of sectors that are written to
	.set STEP, 677			# from one write to the next
	.set BEHIND, 64			# how many writes later one is read back
	.set MAGIC, 0x21545257		# "WRT!"
	.set WBUF, 0x8000
	.set RBUF, 0x8200

_start:	jmp	start
	.org 4				# patched when the template is made:
burst:	.word	4			#   writes in each of the 18.2 ticks of a second
disks:	.byte	1			#   disks that are written to
pause:	.byte	1			#   ticks from one burst to the next
	.org 8
tag:	.ascii	"TPL!"			#   second word of each of the template's sectors

start:	cli
	xor	ax, ax
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	sp, 0x7c00
	sti
	cld
	mov	si, offset hello
	call	puts

	# Go on after the last write that is on the first disk.
	mov	ax, 0x1000
	mov	fs, ax
	mov	[segment], ax
	mov	word ptr [sectors], 64
	mov	ebx, WRITES
scan:	mov	ah, 0x42
	call	disk
	xor	di, di
1:	cmp	dword ptr fs:[di+4], MAGIC
	jne	2f
	mov	eax, fs:[di]
	cmp	eax, [count]
	jbe	2f
	mov	[count], eax
2:	add	di, 512			# 64 sectors end at 0x8000
	jns	1b
	add	ebx, 64
	cmp	ebx, WRITES + SPAN
	jb	scan
	mov	word ptr [segment], 0
	mov	word ptr [sectors], 1

tick:	mov	bp, [burst]
next:	inc	dword ptr [count]
	mov	al, [disks]
	add	al, 0x7f
	mov	[drive], al
each:	mov	eax, [count]
	call	place
	mov	di, WBUF
	mov	cx, 128
	rep stosd
	mov	dword ptr [WBUF+4], MAGIC
	mov	[WBUF+8], ebx
	movzx	eax, byte ptr [drive]
	mov	[WBUF+12], eax
	mov	word ptr [buffer], WBUF
	mov	ah, 0x43
	call	disk
	mov	eax, [count]
	sub	eax, BEHIND
	jbe	3f
	call	place
	call	read
	cmp	[RBUF], eax
	mov	dl, 'W'
	jne	bad
3:	dec	byte ptr [drive]	# 0x7f is positive: past the first disk
	js	each
	mov	byte ptr [drive], 0x80

	# Read a sector of the template that is never written to.
	mov	eax, [count]
	call	place
	sub	ebx, WRITES - TEMPLATE
	call	read
	mov	dl, 'T'
	cmp	[RBUF], ebx
	jne	bad
	mov	eax, [tag]
	cmp	[RBUF+4], eax
	jne	bad
	dec	bp
	jnz	next

	dec	byte ptr [quiet]
	jnz	4f
	mov	byte ptr [quiet], 4
	mov	eax, [count]
	call	hex
4:	mov	al, [pause]
8:	hlt				# until the next tick
	dec	al
	jnz	8b
	jmp	tick

bad:	mov	[what], dl		# "BAD W" or "BAD T" and the sector
	push	ebx
	mov	si, offset wrong
	call	puts
	pop	eax
	call	hex
	mov	byte ptr [drive], 0x80
	hlt
	jmp	tick

place:	mov	ebx, eax		# ebx = sector of write eax
	imul	ebx, ebx, STEP
	and	ebx, SPAN - 1
	add	ebx, WRITES
	ret

read:	mov	word ptr [buffer], RBUF	# sector ebx to RBUF
	mov	dword ptr [RBUF], 0
	push	eax
	mov	ah, 0x42
	call	disk
	pop	eax
	ret

disk:	mov	[sector], ebx		# ah = 0x42 to read, 0x43 to write
	push	ebx
	mov	al, 0
	mov	dl, [drive]
	mov	si, offset packet
	int	0x13
	pop	ebx
	jc	5f
	ret
5:	mov	si, offset failed
	call	puts
	hlt
	jmp	5b

hex:	mov	cx, 8			# eax as eight digits and a newline
6:	rol	eax, 4
	push	eax
	and	al, 15
	cmp	al, 10
	sbb	al, 0x69
	das
	call	putc
	pop	eax
	loop	6b
	mov	al, 10
putc:	mov	dx, 0x3f8
	out	dx, al
	ret

puts:	lodsb
	test	al, al
	jz	7f
	call	putc
	jmp	puts
7:	ret

hello:	.asciz	"BOOT\n"
failed:	.asciz	"DISK ERROR\n"
wrong:	.ascii	"BAD "
what:	.asciz	"? "
quiet:	.byte	1
drive:	.byte	0x80
	.balign 4
count:	.long	0
packet:	.byte	16, 0
sectors: .word	0
buffer:	.word	0
segment: .word	0
sector:	.long	0, 0
	.org 510
	.word	0xaa55
