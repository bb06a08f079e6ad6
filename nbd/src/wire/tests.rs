//! What one side writes the other reads; and everything that is cut short is waited for, not misread.

use super::*;

/// Parses what `write` made, and all its beginnings.
fn whole<T: std::fmt::Debug + PartialEq>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Malformed>,
    expected: T,
) {
    for cut in 0..bytes.len() {
        assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {cut}");
    }
    let more = [bytes, b"more"].concat();
    assert_eq!(parse(&more), Ok(Some((expected, bytes.len()))));
}

const ALL: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

#[test]
fn requests_survive_the_way() {
    for headers in ALL {
        for code in 0..10 {
            let request = Request {
                command: Command::from_code(code),
                flags: CommandFlags::FUA | CommandFlags::PAYLOAD_LEN,
                cookie: u64::MAX - 5,
                offset: 1 << 50,
                len: 77,
            };
            let mut bytes = Vec::new();
            request.write(headers, &mut bytes);
            assert_eq!(bytes.len(), Request::head_len(headers));
            whole(&bytes, |bytes| Request::parse(headers, bytes), request);
            let payload = if code == 1 || headers == Headers::Extended { 77 } else { 0 };
            assert_eq!(request.payload(headers), payload);
            bytes[0] ^= 1;
            assert!(Request::parse(headers, &bytes).is_err());
        }
    }
    let mut wide = Vec::new();
    Request::parse(Headers::Simple, &[0x25, 0x60, 0x95, 0x13]).unwrap();
    let request = Request {
        command: Command::BlockStatus,
        flags: CommandFlags::empty(),
        cookie: 0,
        offset: 0,
        len: 1 << 40,
    };
    request.write(Headers::Extended, &mut wide);
    whole(&wide, |bytes| Request::parse(Headers::Extended, bytes), request);
}

#[test]
fn the_numbers_are_those_of_the_specification() {
    let mut bytes = Vec::new();
    write_simple(&mut bytes, 0x0102_0304_0506_0708, Some(Errno::Invalid));
    assert_eq!(bytes, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]);
    let status = ChunkStatus { cookie: 9, offset: 0, done: true };
    let mut bytes = Vec::new();
    write_hole(&mut bytes, Headers::Structured, status, 4096, 512);
    let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 12];
    assert_eq!(bytes, [&head[..], &[0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0]].concat());
    assert_eq!(&greeting(ServerFlags::FIXED_NEWSTYLE), b"NBDMAGICIHAVEOPT\0\x01");
    let codes = [1, 5, 12, 22, 28, 75, 95, 108, 7];
    for code in codes {
        assert_eq!(Errno::from_code(code).unwrap().code(), code);
    }
    assert_eq!(Errno::from_code(0), None);
    for code in (0..14).chain([u32::MAX]) {
        assert_eq!(OptionCode::from_code(code).code(), code);
    }
    for code in (0..6).chain((1 << 31)..(1 << 31) + 13) {
        assert_eq!(ReplyCode::from_code(code).code(), code);
        assert_eq!(ReplyCode::from_code(code).is_error(), code > 6);
    }
    for code in (0..8).chain(32768..32772) {
        assert_eq!(ChunkKind::from_code(code).code(), code);
    }
}

#[test]
fn chunks_survive_the_way() {
    for headers in [Headers::Structured, Headers::Extended] {
        let offset = if headers == Headers::Extended { 4096 } else { 0 };
        let status = ChunkStatus { cookie: 3, offset, done: true };
        let extents = vec![Extent { len: 65536, flags: 3 }, Extent { len: 512, flags: 0 }];
        let mut all = [const { Vec::new() }; 3];
        write_hole(&mut all[0], headers, status, 8192, 1024);
        write_error(&mut all[1], headers, status, Errno::Io, "disk on fire");
        write_status(&mut all[2], headers, status, 1, &extents);
        let error = Chunk::Error { error: Errno::Io, text: b"disk on fire", at: None };
        let expected =
            [Chunk::Hole { at: 8192, len: 1024 }, error, Chunk::Status { context: 1, extents }];
        for (bytes, expected) in all.iter().zip(expected) {
            let (head, used) = ReplyHead::parse(headers, bytes).unwrap().unwrap();
            let ReplyHead::Chunk { status: found, kind, len } = head else { panic!("{head:?}") };
            assert_eq!((found, len as usize), (status, bytes.len() - used));
            assert_eq!(Chunk::parse(kind, &bytes[used..]), Ok(expected));
            for cut in used..bytes.len() {
                // One extent less, without a count of them, is sound too.
                if kind == ChunkKind::Status && cut == used + 12 {
                    continue;
                }
                assert!(Chunk::parse(kind, &bytes[used..cut]).is_err(), "{kind:?} cut at {cut}");
            }
            whole(&bytes[..used], |bytes| ReplyHead::parse(headers, bytes), head);
        }
    }
}

#[test]
fn a_client_takes_no_reply_of_another_kind_and_none_that_is_too_long() {
    let mut simple = Vec::new();
    write_simple(&mut simple, 1, None);
    assert!(ReplyHead::parse(Headers::Structured, &simple).is_ok());
    assert!(ReplyHead::parse(Headers::Extended, &simple).is_err());
    let mut chunk = Vec::new();
    let status = ChunkStatus { cookie: 1, offset: 0, done: false };
    write_chunk_head(&mut chunk, Headers::Structured, status, ChunkKind::Data, MAX_PAYLOAD + 9);
    assert!(ReplyHead::parse(Headers::Structured, &chunk).is_err());
    assert!(ReplyHead::parse(Headers::Simple, &chunk).is_err());
    // Of extents, none has no length and at least one is there.
    assert!(Chunk::parse(ChunkKind::Status, &[0, 0, 0, 1]).is_err());
    assert!(Chunk::parse(ChunkKind::Status, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(Greeting::parse(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53").is_err());
}

#[test]
fn options_and_their_replies_survive_the_way() {
    let wanted = Wanted { name: b"disk", infos: vec![Info::BLOCK_SIZE, Info::NAME] };
    let query = MetaQuery { name: b"", queries: vec![b"base:", b"qemu:dirty-bitmap:b0"] };
    for (data, parse) in [
        (wanted.to_bytes(), (|data| Wanted::parse(data).is_some()) as fn(&[u8]) -> bool),
        (query.to_bytes(), |data| MetaQuery::parse(data).is_some()),
    ] {
        assert!(parse(&data));
        assert!((0..data.len()).all(|cut| !parse(&data[..cut])));
        assert!(!parse(&[&data[..], b"x"].concat()));
    }
    assert_eq!(Wanted::parse(&wanted.to_bytes()), Some(wanted));
    assert_eq!(MetaQuery::parse(&query.to_bytes()), Some(query));
    let mut bytes = Vec::new();
    OptionHead::write(OptionCode::Go, b"1234", &mut bytes);
    let head = OptionHead::parse(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(head, OptionHead { option: OptionCode::Go, len: 4 });
    let reply = OptionReply { option: OptionCode::List, code: ReplyCode::Ack, data: b"ab" };
    let mut bytes = Vec::new();
    reply.write(&mut bytes);
    for cut in 0..bytes.len() {
        assert_eq!(OptionReply::parse(&bytes[..cut]), Ok(None));
    }
    assert_eq!(OptionReply::parse(&bytes), Ok(Some((reply, bytes.len()))));
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    for info in [
        Info::Export(1 << 40, flags),
        Info::Name(b"x"),
        Info::Description(b""),
        Info::BlockSize(1, 4096, 1 << 25),
    ] {
        assert_eq!(Info::parse(&info.to_bytes()), Some(info));
    }
    let flags = ServerFlags::FIXED_NEWSTYLE | ServerFlags::NO_ZEROES;
    whole(&greeting(flags), Greeting::parse, Greeting { flags });
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "ä".repeat(3000);
    assert_eq!(cut(&text).len(), MAX_STRING);
    assert_eq!(cut(&format!("x{text}")).len(), MAX_STRING - 1);
    assert_eq!(cut("short"), "short");
}
