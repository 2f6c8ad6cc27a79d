//! Walks over the typed Dockerfile: its spans, its words, and what of it is more than places.

use kiln_grammar::ast::{ArgPair, Dockerfile, Files, Heredoc, Instruction, Kind, Source, Word};
use kiln_grammar::source::{Span, Spanned};

/// Fails unless a span lies in the text, on the borders of characters, and in the span around it.
pub fn check_span(text: &str, span: Span, outer: Span) {
    assert!(text.get(span.range()).is_some(), "{span:?} of {text:?}");
    assert!(
        outer.start <= span.start && span.end <= outer.end,
        "{span:?} is not in {outer:?} of {text:?}"
    );
}

/// Checks all spans of a Dockerfile: they lie in the text, they nest, and instructions follow one
/// another.
pub fn check_spans(text: &str, dockerfile: &Dockerfile) {
    let end = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let whole = Span { start: 0, end };
    let mut from = 0;
    let mut next = |span: Span| {
        check_span(text, span, whole);
        assert!(from <= span.start, "{span:?} overlaps what is before it");
        from = span.end;
    };
    let directives = &dockerfile.directives;
    let values = [&directives.syntax, &directives.check];
    for value in values.into_iter().flatten() {
        check_span(text, value.span, whole);
    }
    for arg in &dockerfile.global_args {
        next(arg.span);
        check_instruction(text, arg, arg.span);
    }
    for stage in &dockerfile.stages {
        next(stage.span);
        check_span(text, stage.base.span, stage.span);
        for word in stage.platform.iter().chain(&stage.name) {
            check_span(text, word.span, stage.span);
        }
        for instruction in &stage.instructions {
            next(instruction.span);
            check_instruction(text, instruction, instruction.span);
        }
    }
}

/// Checks the spans of one instruction in the span around it.
pub fn check_instruction(text: &str, instruction: &Instruction, outer: Span) {
    check_span(text, instruction.span, outer);
    let mut copy = instruction.clone();
    spans(&mut copy, &mut |span| {
        check_span(text, *span, instruction.span);
    });
    // A place in a body leads to that place in the file.
    heredocs(&mut copy.kind, &mut |heredoc| {
        let mut at = 0;
        for line in heredoc.content.split_inclusive('\n') {
            let place = heredoc.place(at);
            check_span(text, place, instruction.span);
            let shown = line.lines().next().unwrap_or_default();
            assert_eq!(&text[place.range()], shown, "{heredoc:?}");
            at += line.len();
        }
    });
    if let Kind::Onbuild(onbuild) = &instruction.kind {
        check_instruction(text, &onbuild.instruction, instruction.span);
    }
}

/// Calls a function with every instruction, those of `ONBUILD` too.
pub fn each_instruction(dockerfile: &Dockerfile, visit: &mut dyn FnMut(&Instruction)) {
    for instruction in super::instructions(dockerfile) {
        visit(instruction);
        if let Kind::Onbuild(onbuild) = &instruction.kind {
            visit(&onbuild.instruction);
        }
    }
}

/// Calls a function with every text that is expanded, or could be.
pub fn each_word(dockerfile: &Dockerfile, visit: &mut dyn FnMut(&str)) {
    for stage in &dockerfile.stages {
        visit(&stage.base.value);
        stage.platform.iter().for_each(|word| visit(&word.value));
    }
    each_instruction(dockerfile, &mut |instruction| {
        let mut copy = instruction.clone();
        words(&mut copy.kind, &mut |word| visit(&word.value));
        heredocs(&mut copy.kind, &mut |heredoc| visit(&heredoc.content));
    });
}

/// A Dockerfile without what depends on how it is written: places, blanks between words, the case
/// of keywords, warnings.
#[must_use]
pub fn normal(dockerfile: &Dockerfile) -> Dockerfile {
    let mut normal = dockerfile.clone();
    normal.warnings.clear();
    let directives = &mut normal.directives;
    for value in directives.syntax.iter_mut().chain(&mut directives.check) {
        value.span = Span::default();
    }
    for arg in &mut normal.global_args {
        *arg = normal_instruction(arg);
    }
    for stage in &mut normal.stages {
        stage.span = Span::default();
        stage.base.span = Span::default();
        for word in stage.platform.iter_mut().chain(&mut stage.name) {
            word.span = Span::default();
        }
        for instruction in &mut stage.instructions {
            *instruction = normal_instruction(instruction);
        }
    }
    normal
}

/// The same for one instruction.
#[must_use]
pub fn normal_instruction(instruction: &Instruction) -> Instruction {
    let mut normal = instruction.clone();
    spans(&mut normal, &mut |span| *span = Span::default());
    heredocs(&mut normal.kind, &mut |heredoc| heredoc.lines.clear());
    normal.span = Span::default();
    normal.text.clear();
    normal.keyword.value.make_ascii_uppercase();
    if let Kind::Onbuild(onbuild) = &mut normal.kind {
        onbuild.trigger.clear();
        *onbuild.instruction = normal_instruction(&onbuild.instruction);
    }
    normal
}

/// Calls a function with the spans inside an instruction.
fn spans(instruction: &mut Instruction, visit: &mut dyn FnMut(&mut Span)) {
    visit(&mut instruction.keyword.span);
    words(&mut instruction.kind, &mut |word| visit(&mut word.span));
    heredocs(&mut instruction.kind, &mut |heredoc| {
        visit(&mut heredoc.span);
    });
}

fn words(kind: &mut Kind, visit: &mut dyn FnMut(&mut Spanned<String>)) {
    match kind {
        Kind::Arg(pairs) => {
            for ArgPair { name, default } in pairs {
                visit(name);
                default.iter_mut().for_each(&mut *visit);
            }
        }
        Kind::Env(pairs) | Kind::Label(pairs) => {
            for pair in pairs {
                visit(&mut pair.key);
                visit(&mut pair.value);
            }
        }
        Kind::Run(run) => {
            let lists = run.mounts.iter_mut().chain(&mut run.devices);
            lists.for_each(&mut *visit);
            let values = run.network.iter_mut().chain(&mut run.security);
            values.for_each(visit);
        }
        Kind::Copy(copy) => {
            copy.from.iter_mut().for_each(&mut *visit);
            files(&mut copy.files, visit);
        }
        Kind::Add(add) => {
            add.checksum.iter_mut().for_each(&mut *visit);
            files(&mut add.files, visit);
        }
        Kind::Volume(words) | Kind::Expose(words) => words.iter_mut().for_each(visit),
        Kind::Workdir(word)
        | Kind::User(word)
        | Kind::StopSignal(word)
        | Kind::Maintainer(word) => visit(word),
        Kind::Cmd(_)
        | Kind::Entrypoint(_)
        | Kind::Shell(_)
        | Kind::Healthcheck(_)
        | Kind::Onbuild(_) => {}
    }
}

fn files(files: &mut Files, visit: &mut dyn FnMut(&mut Word)) {
    let flags = files.chown.iter_mut().chain(&mut files.chmod);
    flags.chain(&mut files.exclude).for_each(&mut *visit);
    for source in &mut files.sources {
        if let Source::Path(word) = source {
            visit(word);
        }
    }
    visit(&mut files.destination);
}

fn heredocs(kind: &mut Kind, visit: &mut dyn FnMut(&mut Heredoc)) {
    let files = match kind {
        Kind::Run(run) => return run.heredocs.iter_mut().for_each(visit),
        Kind::Copy(copy) => &mut copy.files,
        Kind::Add(add) => &mut add.files,
        _ => return,
    };
    for source in &mut files.sources {
        if let Source::Heredoc(heredoc) = source {
            visit(heredoc);
        }
    }
}
