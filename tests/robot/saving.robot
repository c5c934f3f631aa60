*** Settings ***
Documentation     What was learned survives a reset, and a power cut in the middle of saving.
Resource          ../../renode/tinytrain.robot
Suite Setup       Prepare Board    model=demo    scheme=sparse
Suite Teardown    Switch Off

*** Test Cases ***
Nothing Is Loaded From Empty Flash
    Skip If    '${TARGET}' == 'serial'    the board's flash may hold an earlier copy
    Run Keyword And Expect Error    LOAD was refused (NO_SAVE)*    Load From Flash

Saved Training Comes Back
    Train On Device    steps=5
    Save To Flash
    Reset Model
    Parameters Should Be As Flashed
    Load From Flash
    Parameters Should Equal Host

Power Cut While Saving Keeps The Older Copy
    [Documentation]    In the erasure, in the first word, in the midst of the parameters.
    FOR    ${operation}    IN    1    2    500
        Cut Power While Saving    ${operation}
        Parameters Should Be As Flashed
        Load From Flash
        Parameters Should Equal Host
    END
