__version__ = "0.1.0"

# What most programs need, each name loaded when it is first asked for (PEP 562): `import text2grad` costs nothing,
# `from text2grad import align` imports no torch, and `from text2grad import SpanPPO` does.
_faces = dict(
    files='UserError',
    core='Critique Example Judgement Quote Span read_examples write_examples',
    pretrained='load_model tiny_lm',
    loaded='', checkpoints='StopOnSignal', processes='',
    alignment='align find_spans token_rewards',
    viz='heat_map spans_html token_html',
    sandbox='run',
    data='Task annotate load_task',
    critics='ApiCritic LLMCritic Majority ModelCritic RuleCritic UnitTestCritic Weighted rule_critic',
    span_ppo='Callback Policy ProgressBar RunFolder SpanPPO SpanPPOConfig TensorBoardLogger TrackioLogger WandbLogger '
             'apply_critique evaluate ledger measure',
    evaluation='compare_rows critic_report span_report token_alpha write_report',
    reward_model='GenerativeRewardModel SpanRewardModel TrainConfig read_feedback split_by_prompt train_reward_model',
    app='', cli='')
_home = {name:face for face,names in _faces.items() for name in names.split()}
__all__ = sorted(_home)

def __getattr__(name):
    from importlib import import_module
    if name in _home: return getattr(import_module(f'text2grad.{_home[name]}'), name)
    if name in _faces: return import_module(f'text2grad.{name}')
    raise AttributeError(f'module "text2grad" has no attribute {name!r}; its modules are {", ".join(_faces)}')

def __dir__(): return sorted({*globals(), *_home, *_faces})
